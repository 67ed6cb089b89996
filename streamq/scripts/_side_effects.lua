-- Prepended to scripts that call carry_out: the side effects of a settlement, in the same step.
-- `checks` has for each what must be so before it is carried out; they change nothing.
local effects, checks = {}, {}

-- keep_result: a result is kept, and published to its waiters. It may replace a key of any type. KEYS: result. ARGV: ttl_ms payload
function checks.keep_result(keys, args)
  whole(args[1], 1)
  ask(keys[1], 'SET')
end

function effects.keep_result(keys, args)
  call('SET', keys[1], args[2], 'PX', whole(args[1], 1))
  publish(keys[1], args[2])
end

-- free_key: a deduplication key is freed, if this task holds it. The task that waits for that (see
-- keep_last) gets the key, and may run. KEYS: dedup [latest, and for each tier: delayed]. ARGV: id [channel]
function checks.free_key(keys)
  call('GET', keys[1])
  ask(keys[1], 'DEL', 'SET')
  if keys[2] then call('HLEN', keys[2]) ask(keys[2], 'HMGET', 'DEL', 'HSET', 'PEXPIRE') end
  for k = 3, #keys do call('ZCARD', keys[k]) ask(keys[k], 'ZSCORE', 'ZADD') end
end

function effects.free_key(keys, args)
  if call('GET', keys[1]) ~= args[1] then return end
  local noted, place = keys[2] and call('HMGET', keys[2], 'id', 'due', 'ttl', 'next') or {}, nil
  local due, ttl, after = tonumber(noted[2] or 0) or 0, tonumber(noted[3] or 1) or 1, noted[4]
  for k = 3, #keys do
    if noted[1] == args[1] and after and call('ZSCORE', keys[k], after) then place = keys[k] end
  end
  if not place then call('DEL', unpack(keys, 1, math.min(2, #keys))) return end
  local ms = whole(ttl + math.max(0, due - clock()), 1)
  call('SET', keys[1], after, 'PX', ms)
  call('DEL', keys[2])
  call('HSET', keys[2], 'id', after, 'ttl', whole(ttl), 'entry', '', 'since', '0')
  call('PEXPIRE', keys[2], ms)
  call('ZADD', place, whole(due), after)
  announce(place, args[2], after)
end
