-- Prepended to the steps of a concurrency limit, whose KEYS are: permits called line limits delayed...
-- `line` is the waiting list; `called` has the waiters for whom a permit is reserved.
-- A waiter is '<entry id> <expires, ms, or 0> <key of its delayed set> <its member there>'.
for k = 1, #KEYS do call('ZCARD', KEYS[k]) end -- a key of another type refuses before any change
ask(KEYS[1], 'PEXPIRE', 'ZREM', 'ZREMRANGEBYSCORE', 'ZADD', 'ZRANGE')
ask(KEYS[2], 'PEXPIRE', 'ZREM', 'ZREMRANGEBYSCORE', 'ZADD', 'ZRANGE', 'ZRANGEBYSCORE', 'ZSCORE')
ask(KEYS[3], 'PEXPIRE', 'ZREM', 'ZADD', 'ZRANGE', 'ZSCORE', 'ZRANK')
ask(KEYS[4], 'PEXPIRE', 'ZREM', 'ZADD')
for k = 5, #KEYS do ask(KEYS[k], 'ZSCORE', 'ZADD') end
clock()
local foreign, woke = {}, false -- waiters whose delayed sets are not among KEYS; was a waiter woken?

-- The delayed set (if it is among KEYS) and the names in it of a waiter: the first if one id was sent twice.
local function place_of(waiter)
  local entry, _, key, member = string.match(waiter, '^(%S+) (%d+) (%S+) (.*)$')
  for k = 5, #KEYS do
    if KEYS[k] == key then return key, {member .. '|' .. entry, member} end
  end
end

-- Make a delayed waiter due now. Returns whether it is delayed, nil if its delayed set is not among KEYS.
local function wake(waiter, now)
  local key, names = place_of(waiter)
  if not key then
    if #foreign < 1000 then foreign[#foreign + 1] = waiter end
    return nil
  end
  for _, name in ipairs(names) do
    local due = call('ZSCORE', key, name)
    if due and tonumber(due) > now then
      call('ZADD', key, whole(now), name)
      woke = true
    end
    if due then return true end
  end
  return false
end
