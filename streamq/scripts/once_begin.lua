-- once_begin: begin an effect, unless it is recorded, or begun by somebody whose lease runs.
-- KEYS: once
-- ARGV: lease_ms ttl_ms
-- Returns {'done', token, result}, {'taken', token, ms left}, or {'begun', a token that is greater than all before}.
local now = clock()
local token, till, result = unpack(call('HMGET', KEYS[1], 'token', 'until', 'result'))
if result then return {'done', token, result} end
if till and tonumber(till) > now then return {'taken', token, till - now} end
-- The server's time, so that tokens go on growing after the record is gone.
token = string.format('%.0f', math.max(now, (token or 0) + 1))
call('HSET', KEYS[1], 'token', token, 'until', string.format('%.0f', now + ARGV[1]))
call('PEXPIRE', KEYS[1], ARGV[2])
return {'begun', token}
