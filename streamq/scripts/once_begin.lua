-- once_begin: begin an effect, unless it is recorded, or another run has begun it and its lease is not over.
-- KEYS: once
-- ARGV: lease_ms ttl_ms
-- Returns {'done', token, result}, {'taken', token, ms left}, or {'begun', a token that is greater than all before}.
local now = clock()
local token, lease_end, result = unpack(call('HMGET', KEYS[1], 'token', 'until', 'result'))
if result then return {'done', token, result} end
if lease_end and tonumber(lease_end) > now then return {'taken', token, lease_end - now} end
-- The server's time, so that tokens go on growing after the record has expired.
token = string.format('%.0f', math.max(now, (token or 0) + 1))
call('HSET', KEYS[1], 'token', token, 'until', string.format('%.0f', now + ARGV[1]))
call('PEXPIRE', KEYS[1], ARGV[2])
return {'begun', token}
