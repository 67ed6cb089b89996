-- Prepended to the steps of a concurrency limit, whose KEYS are: permits called line limits delayed...
-- `line` is the waiting list; `called` has the waiters for whom a permit is reserved.
-- A waiter is '<entry id> <expires, ms, or 0> <key of its delayed set> <its member there>'.
local foreign, woke = {}, false -- waiters whose delayed sets are not among KEYS; was a waiter woken?

-- Make a delayed waiter due now. Returns whether it is delayed, nil if its delayed set is not among KEYS.
local function wake(waiter, now)
  local entry, _, key, member = string.match(waiter, '^(%S+) (%d+) (%S+) (.*)$')
  for k = 5, #KEYS do
    if KEYS[k] == key then
      for _, name in ipairs({member .. ':' .. entry, member}) do -- the first if one id was sent twice
        local due = call('ZSCORE', KEYS[k], name)
        if due and tonumber(due) > now then
          call('ZADD', KEYS[k], string.format('%.0f', now), name)
          woke = true
        end
        if due then return true end
      end
      return false
    end
  end
  foreign[#foreign + 1] = waiter
  return nil
end

-- Wake the first waiters for the free permits, and reserve a permit for each for `reserve` ms. If it is not delayed it
-- may be on its way: half a second; after 5 s it is gone. If `max` is nil (not known), permits that ran out are free.
local function reserve_permits(max, reserve, channel)
  local now = clock()
  local stamp, attempts = string.format('%.0f', now), 200
  for _, waiter in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', stamp)) do wake(waiter, now) end
  local over = call('ZREMRANGEBYSCORE', KEYS[2], '-inf', stamp) + call('ZREMRANGEBYSCORE', KEYS[1], '-inf', stamp)
  local busy = call('ZCARD', KEYS[1]) + call('ZCARD', KEYS[2])
  local free = max and max - busy or math.max(over, busy == 0 and 1 or 0)
  while free > 0 and attempts > 0 do
    local waiter, since = unpack(call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES'))
    if not waiter then break end
    call('ZREM', KEYS[3], waiter)
    attempts = attempts - 1
    local delayed = wake(waiter, now)
    local gone = delayed == false and tonumber(since) < (now - 5000) * 1000
    local expires = tonumber(string.match(waiter, '^%S+ (%d+)'))
    if not gone and (expires == 0 or expires > now) then
      local keep = delayed == false and math.min(500, reserve) or reserve
      call('ZADD', KEYS[2], string.format('%.0f', now + keep), waiter)
      free = free - 1
    end
  end
  if woke then call('PUBLISH', channel, 'due') end
end

-- Note in `limits` when this name is due for a sweep: when the first permit or reservation is over.
local function schedule_sweep(name)
  local first = math.huge
  for k = 1, 3 do
    local found = call('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')
    if found[2] then first = math.min(first, k == 3 and clock() + 1000 or tonumber(found[2])) end
    call('PEXPIRE', KEYS[k], 86400000)
  end
  if first == math.huge then call('ZREM', KEYS[4], name) return end
  call('ZADD', KEYS[4], string.format('%.0f', first), name)
  call('PEXPIRE', KEYS[4], 86400000)
end
