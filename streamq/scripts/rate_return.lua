-- rate_return: take back the last token of a bucket, because its task did not start.
-- KEYS: bucket
-- ARGV: interval_ms
-- Returns the server's time (ms).
local now, full_at, ttl = clock(), call('HGET', KEYS[1], 'gate'), call('PTTL', KEYS[1])
if full_at and ttl > 0 then
  ask(KEYS[1], 'HSET')
  call('PEXPIRE', KEYS[1], ttl) -- a first write that needs no memory
  call('HSET', KEYS[1], 'gate', string.format('%.17g', time_in(full_at, now) - ARGV[1]))
end
return now
