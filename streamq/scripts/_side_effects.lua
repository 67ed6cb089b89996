-- Prepended to scripts that call carry_out: the side effects of a settlement, in the same step.
local effects = {}

-- keep_result: a result is kept, and published to its waiters. KEYS: result. ARGV: ttl_ms payload
function effects.keep_result(keys, args)
  call('SET', keys[1], args[2], 'PX', args[1])
  call('PUBLISH', keys[1], args[2])
end

-- free_key: a deduplication key is freed, if this task holds it. The task that waits for that (see
-- keep_last) gets the key, and may run. KEYS: dedup [latest, and for each tier: delayed]. ARGV: id [channel]
function effects.free_key(keys, args)
  if call('GET', keys[1]) ~= args[1] then return end
  local due, ttl, after = 0, 0, nil
  if keys[2] then
    local noted = call('HMGET', keys[2], 'due', 'ttl', 'next', 'id')
    if noted[4] == args[1] then due, ttl, after = tonumber(noted[1]), noted[2], noted[3] end
    call('DEL', keys[2])
  end
  call('DEL', keys[1])
  for k = 3, #keys do
    if after and call('ZSCORE', keys[k], after) then
      local ms = string.format('%.0f', ttl + math.max(0, due - clock()))
      call('SET', keys[1], after, 'PX', ms)
      call('HSET', keys[2], 'id', after, 'ttl', ttl, 'entry', '', 'since', '0')
      call('PEXPIRE', keys[2], ms)
      call('ZADD', keys[k], string.format('%.0f', math.max(0, due)), after)
      if call('ZRANGE', keys[k], 0, 0)[1] == after then call('PUBLISH', args[2], 'due') end
    end
  end
end
