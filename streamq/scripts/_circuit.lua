-- Prepended to circuit_enter and circuit_leave, and reads their KEYS: the fields of one circuit, and those that change.
local now, circuit, changed, flat = clock(), {state = 'closed', probes = ''}, {}, call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do circuit[flat[i]] = flat[i + 1] end

local function num(field) return tonumber(circuit[field] or 0) end

local function put(field, value)
  circuit[field] = type(value) == 'number' and string.format('%.17g', value) or value
  changed[#changed + 1], changed[#changed + 2] = field, circuit[field]
end

-- Write the changed fields. Returns the TTL (ms) of the circuit: `keep` after the last number is due.
local function save_circuit(keep)
  local ttl = string.format('%.0f', math.max(num('last_due') - now, 0) + keep)
  if #changed > 0 then
    call('HSET', KEYS[1], unpack(changed))
    call('PEXPIRE', KEYS[1], ttl)
  end
  return ttl
end

-- The circuit is not closed: add it to the index that the monitor reads.
local function add_to_index(name, ttl)
  call('ZADD', KEYS[2], string.format('%.0f', now + ttl), name)
  if call('PTTL', KEYS[2]) < tonumber(ttl) then call('PEXPIRE', KEYS[2], ttl) end
end
