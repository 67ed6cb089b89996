-- once_withdraw: end the effect that a run may have begun, without an answer that says so. Wakes the waiters.
-- KEYS: once
-- ARGV: run ttl_ms
-- Returns 1, or 0 if the effect is not in progress in this run, and nothing was done.
local run, lease_end = unpack(call('HMGET', KEYS[1], 'run', 'until'))
if run ~= ARGV[1] or not lease_end then return 0 end
ask(KEYS[1], 'HDEL', 'PEXPIRE')
call('HDEL', KEYS[1], 'until', 'run')
call('PEXPIRE', KEYS[1], whole(ARGV[2], 1))
publish(KEYS[1], 'free')
return 1
