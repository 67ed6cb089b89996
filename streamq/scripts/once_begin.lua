-- once_begin: begin an effect, unless it is recorded, or another run has begun it and its lease is not over.
-- KEYS: once
-- ARGV: lease_ms ttl_ms [run]
-- Returns {'done', token, result}, {'taken', token, ms left of its lease, ms since it began}, or {'begun', a token that is greater than all before}.
local now = clock()
local token, lease_end, result = unpack(call('HMGET', KEYS[1], 'token', 'until', 'result'))
token, lease_end = time_in(token, now), time_in(lease_end, now) -- what is no time of ours does not count
if result then return {'done', whole(token), result} end
if lease_end > now then return {'taken', whole(token), lease_end - now, math.max(0, now - token)} end
ask(KEYS[1], 'PEXPIRE')
-- The server's time, so that tokens go on growing after the record has expired.
token = whole(math.max(now, token + 1))
call('HSET', KEYS[1], 'token', token, 'until', whole(now + ARGV[1]), 'run', ARGV[3] or '')
call('PEXPIRE', KEYS[1], whole(ARGV[2], 1))
return {'begun', token}
