-- rate_back: what took the last token of a bucket has not started after all.
-- KEYS: bucket
-- ARGV: interval_ms
-- Returns the server's time (ms).
local gate, ttl = call('HGET', KEYS[1], 'gate'), call('PTTL', KEYS[1])
if gate and ttl > 0 then
  call('PEXPIRE', KEYS[1], ttl) -- a first write that needs no memory
  call('HSET', KEYS[1], 'gate', string.format('%.17g', gate - ARGV[1]))
end
return clock()
