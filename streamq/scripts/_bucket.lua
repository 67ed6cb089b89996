-- Prepended to rate_acquire and rate_drain, and reads their KEYS: the times in a bucket.
-- Until when tokens are reserved, when the bucket is full, until when late ones are reserved, until when it is drained.
local function read_bucket(now)
  local times = call('HMGET', KEYS[1], 'tail', 'gate', 'again', 'shut')
  for k = 1, 4 do times[k] = time_in(times[k], now) end
  return unpack(times)
end

local function write_bucket(now, reserved_until, full_at, late_reserved_until, drained_until)
  ask(KEYS[1], 'HSET')
  call('PEXPIRE', KEYS[1], 60000) -- the first write needs no memory: a full server keeps the limit, too
  call('HSET', KEYS[1], 'tail', text(reserved_until), 'gate', text(full_at), 'again', text(late_reserved_until),
    'shut', text(drained_until))
  call('PEXPIRE', KEYS[1], whole(math.max(reserved_until, full_at, late_reserved_until, drained_until) - now + 1000))
end
