-- once_renew: renew the lease of an effect, unless another run has taken it over. Restores it if the server lost it.
-- KEYS: once
-- ARGV: token lease_ms ttl_ms
-- Returns 1, or 0 if another run has it, or it has ended.
local token, lease_end = unpack(call('HMGET', KEYS[1], 'token', 'until'))
if token and (token ~= ARGV[1] or not lease_end) then return 0 end
ask(KEYS[1], 'PEXPIRE')
call('HSET', KEYS[1], 'token', ARGV[1], 'until', whole(clock() + ARGV[2]))
call('PEXPIRE', KEYS[1], whole(ARGV[3], 1))
return 1
