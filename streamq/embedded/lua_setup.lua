-- Runs once in the Lua interpreter of a memory:// server, and gives scripts the environment of a real server.
-- fakeredis' own cjson.encode writes {} as [], 1 nil 3 as an object, and é as \u00e9.

-- Scripts have no access to Python and to files. lupa itself needs debug.traceback.
python, io, require, package, dofile, loadfile, module, getfenv, setfenv = nil
os = {clock = os.clock}
debug = {traceback = debug.traceback}

redis.replicate_commands = function() return true end
redis.acl_check_cmd = function() return true end -- no user of memory:// lacks a right
redis.error_reply = function(message)
  return {err = string.find(message, ' ', 1, true) and string.gsub(message, '^%-', '') or 'ERR ' .. message}
end

local escapes = {
  ['"'] = '\\"', ['\\'] = '\\\\', ['/'] = '\\/', ['\b'] = '\\b', ['\f'] = '\\f',
  ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t',
}
local null, encode = cjson.null, nil

local function quote(text)
  local function escape(char) return escapes[char] or string.format('\\u%04x', string.byte(char)) end
  return '"' .. string.gsub(text, '[%c"\\/]', escape) .. '"'
end

-- Returns the highest index if all keys are positive whole numbers, and nil for an object and for {}.
local function length_of_array(t)
  local highest, count = 0, 0
  for key in pairs(t) do
    if type(key) ~= 'number' or key < 1 or key % 1 ~= 0 then return nil end
    highest, count = math.max(highest, key), count + 1
  end
  if highest > 10 and highest > count * 2 then error('Cannot serialise table: excessively sparse array') end
  return highest > 0 and highest or nil
end

local function encode_table(t, depth)
  if depth > 1000 then error('Cannot serialise, excessive depth') end
  local parts, length = {}, length_of_array(t)
  if length then
    for i = 1, length do parts[i] = encode(t[i], depth) end
    return '[' .. table.concat(parts, ',') .. ']'
  end
  for key, value in pairs(t) do
    if type(key) == 'number' then key = string.format('%.14g', key) end
    if type(key) ~= 'string' then error('Cannot serialise table: table key must be a number or string') end
    parts[#parts + 1] = quote(key) .. ':' .. encode(value, depth)
  end
  return '{' .. table.concat(parts, ',') .. '}'
end

encode = function(value, depth)
  local kind = type(value)
  if value == nil or value == null then return 'null' end
  if kind == 'string' then return quote(value) end
  if kind == 'boolean' then return tostring(value) end
  if kind == 'table' then return encode_table(value, depth + 1) end
  if kind ~= 'number' then error('Cannot serialise ' .. kind .. ': type not supported') end
  if value ~= value or value == math.huge or value == -math.huge then
    error('Cannot serialise number: must not be NaN or Inf')
  end
  return string.format('%.14g', value)
end

cjson.encode = function(value) return encode(value, 0) end

-- As in Redis. In fakeredis alone, a script that sets a global makes all later scripts fail.
setmetatable(_G, {
  __newindex = function(_, name)
    error("Script attempted to create global variable '" .. tostring(name) .. "'", 2)
  end,
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
})
return 1
