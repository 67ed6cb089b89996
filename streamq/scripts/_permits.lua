-- Prepended to the steps of a concurrency limit, after _wake.
-- Wake the first waiters for the free permits, and reserve a permit for each for `reserve` ms. If it is not delayed it
-- may be on its way: half a second; after 5 s it is gone. If `max` is nil (not known), permits that ran out are free.
local function reserve_permits(max, reserve, channel)
  local now, attempts = clock(), 200
  local stamp = whole(now)
  for _, waiter in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', stamp)) do wake(waiter, now) end
  local over = call('ZREMRANGEBYSCORE', KEYS[2], '-inf', stamp) + call('ZREMRANGEBYSCORE', KEYS[1], '-inf', stamp)
  local busy = call('ZCARD', KEYS[1]) + call('ZCARD', KEYS[2])
  local free = max and max - busy or math.max(over, busy == 0 and 1 or 0)
  if free <= 0 then -- what somebody else put there for ever is no permit
    for k = 1, 2 do free = free + call('ZREMRANGEBYSCORE', KEYS[k], whole(now + 31 * 86400000), '+inf') end
  end
  while free > 0 and attempts > 0 do
    local waiter, since = unpack(call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES'))
    if not waiter then break end
    call('ZREM', KEYS[3], waiter)
    attempts = attempts - 1
    local delayed = wake(waiter, now)
    local gone = delayed == false and tonumber(since) < (now - 5000) * 1000
    local expires = tonumber(string.match(waiter, '^%S+ (%d+) %S+ .') or 1) -- what is no waiter has expired
    if not gone and (expires == 0 or expires > now) then
      local keep = delayed == false and math.min(500, reserve) or reserve
      call('ZADD', KEYS[2], whole(now + keep), waiter)
      free = free - 1
    end
  end
  if woke then publish(channel, 'due') end
end
