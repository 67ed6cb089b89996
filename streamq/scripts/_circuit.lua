-- Prepended to circuit_enter and circuit_leave, and reads their KEYS: the fields of one circuit, and those that change.
local now, circuit, changed, flat = clock(), {}, {}, call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do circuit[flat[i]] = flat[i + 1] end

-- Somebody else's values are read around: what is no number is 0, and so is a time that cannot be.
local function num(field)
  local value = tonumber(circuit[field] or 0) or 0
  return value >= -9e15 and value <= 9e15 and value or 0
end
for field, latest in pairs({since = now, closed = now, failed_at = now, gate = now + 1e11, late = now + 1e11,
  ramp = now + 1e11, last_due = now + 1e11, origin = now + 1e11}) do
  if circuit[field] and (num(field) > latest or not tonumber(circuit[field])) then circuit[field] = nil end
end
for _, field in ipairs({'period', 'failures', 'issued', 'head'}) do circuit[field] = circuit[field] and whole(num(field)) end
if circuit.state ~= 'open' and circuit.state ~= 'half_open' then circuit.state = 'closed' end
circuit.probes = circuit.probes or ''

local function put(field, value)
  circuit[field] = type(value) == 'number' and string.format('%.17g', value) or value
  changed[#changed + 1], changed[#changed + 2] = field, circuit[field]
end

-- Write the changed fields. Returns the TTL (ms) of the circuit: `keep` after the last number is due.
local function save_circuit(keep)
  local ttl = whole(math.max(num('last_due') - now, 0) + keep)
  ask(KEYS[1], 'PEXPIRE')
  if #changed > 0 then
    call('HSET', KEYS[1], unpack(changed))
    call('PEXPIRE', KEYS[1], ttl)
  end
  return ttl
end
