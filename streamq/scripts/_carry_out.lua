-- Prepended to scripts that call carry_out, after the side effects: their checks, and how they are carried out.
-- For each key a command that only reads: a key of another type refuses it. A result may replace a key of any type.
local reads = {
  keep_result = {}, free_key = {'GET', 'HLEN', rest = 'ZCARD'}, send_task = {'XLEN'}, delay_task = {'ZCARD', 'HLEN'},
  join_group = {'HLEN', 'XLEN', 'ZCARD', 'HLEN'},
}

-- Fail if a key has a type that carry_out could not use. Scripts call this before their first change.
local function check_types(key, at)
  while at <= #ARGV do
    local names, keys = reads[ARGV[at]], tonumber(ARGV[at + 1])
    for k = 1, keys do
      local read = names[k] or names.rest
      if read then call(read, KEYS[key + k - 1]) end
    end
    key, at = key + keys, at + 3 + ARGV[at + 2]
  end
end

-- Carry out the side effects in KEYS from `key` on and in ARGV from `at` on.
-- In ARGV each has: name, number of keys, number of arguments, arguments.
local function carry_out(key, at)
  while at <= #ARGV do
    local keys, args = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    effects[ARGV[at]]({unpack(KEYS, key, key + keys - 1)}, {unpack(ARGV, at + 3, at + 2 + args)})
    key, at = key + keys, at + 3 + args
  end
end
