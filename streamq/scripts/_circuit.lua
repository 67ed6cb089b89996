-- Prepended to circuit_enter and circuit_leave, and reads their KEYS: one circuit, and what is new of it.
local now, c, new, flat = clock(), {state = 'closed', probes = ''}, {}, call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do c[flat[i]] = flat[i + 1] end

local function n(field) return tonumber(c[field] or 0) end

local function put(field, value)
  c[field] = type(value) == 'number' and string.format('%.17g', value) or value
  new[#new + 1], new[#new + 2] = field, c[field]
end

-- Write what is new; returns how long (ms) it will be remembered, `keep` beyond the last that is due.
local function kept_for(keep)
  local ttl = string.format('%.0f', math.max(n('last_due') - now, 0) + keep)
  if #new > 0 then
    call('HSET', KEYS[1], unpack(new))
    call('PEXPIRE', KEYS[1], ttl)
  end
  return ttl
end

-- It is not closed: name it in the index.
local function name_it(name, ttl)
  call('ZADD', KEYS[2], string.format('%.0f', now + ttl), name)
  if call('PTTL', KEYS[2]) < tonumber(ttl) then call('PEXPIRE', KEYS[2], ttl) end
end
