-- once_renew: go on with an effect, if nobody has taken it over. A server that lost its data is told again.
-- KEYS: once
-- ARGV: token lease_ms ttl_ms
-- Returns 1, or 0: it is another's, or ended.
local token, till = unpack(call('HMGET', KEYS[1], 'token', 'until'))
if token and (token ~= ARGV[1] or not till) then return 0 end
call('HSET', KEYS[1], 'token', ARGV[1], 'until', string.format('%.0f', clock() + ARGV[2]))
call('PEXPIRE', KEYS[1], ARGV[3])
return 1
