-- permit_acquire: may a run start under this limit? If not, its task goes to the waiting list.
-- KEYS: permits called line limits delayed...
-- ARGV: name max lease_ms reserve_ms channel run waiter since(when the waiter asked first, us; '' if it asks now)
-- Returns {1 or 0, since, waiters before it, foreign waiter...}: the caller wakes foreign waiters with permit_wake.
local max, run, waiter, since = tonumber(ARGV[2]), ARGV[6], ARGV[7], ARGV[8]
call('PEXPIRE', KEYS[1], 86400000) -- a first write that needs no memory: a full server keeps the limit, too
-- One that asks anew may wait already: the run that was told to wait was cut off before its task was delayed.
local granted, listed = call('ZREM', KEYS[2], waiter) == 1, call('ZSCORE', KEYS[3], waiter)
if not granted then
  reserve_permits(max, ARGV[4], ARGV[5])
  granted = listed and call('ZREM', KEYS[2], waiter) == 1
  local reserved = call('ZCARD', KEYS[2])
  if granted then -- its permit was reserved just now
  elseif call('ZCARD', KEYS[1]) + reserved < max and call('ZCARD', KEYS[3]) == 0 then
    granted = true
  elseif since ~= '' and not listed and reserved > 0 then
    -- It is late: its reservation is over. It takes the one of a waiter that has not come yet, which may do likewise.
    call('ZREM', KEYS[2], call('ZRANGE', KEYS[2], -1, -1)[1])
    granted = true
  end
end
local rank = 0
if granted then
  call('ZADD', KEYS[1], whole(clock() + ARGV[3]), run)
else
  if listed then since = whole(listed) end
  if since == '' then since = whole(time[1] * 1000000 + time[2]) end
  call('ZADD', KEYS[3], 'NX', since, waiter)
  rank = call('ZRANK', KEYS[3], waiter)
end
schedule_sweep(ARGV[1])
return {granted and 1 or 0, since, rank, unpack(foreign)}
