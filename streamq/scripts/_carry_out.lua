-- Prepended to scripts that call carry_out, after the side effects: their checks, and how they are carried out.
-- Call `visit` for each side effect in KEYS from `key` on and in ARGV from `at` on.
-- In ARGV each has: name, number of keys, number of arguments, arguments.
local function each_side_effect(key, at, visit)
  while at <= #ARGV do
    local keys, args = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    visit(ARGV[at], {unpack(KEYS, key, key + keys - 1)}, {unpack(ARGV, at + 3, at + 2 + args)})
    key, at = key + keys, at + 3 + args
  end
end

-- Fail if one of them would be refused: by the type of a key, by the user's rights, by a stream whose ids are used up.
-- Scripts call this before their first change.
local function check_side_effects(key, at)
  clock()
  each_side_effect(key, at, function(name, keys, args) checks[name](keys, args) end)
end

local function carry_out(key, at)
  each_side_effect(key, at, function(name, keys, args) effects[name](keys, args) end)
end
