-- once_end: end an effect: record its result, or release it so that another run may begin it. Wakes the waiters.
-- KEYS: once
-- ARGV: token ttl_ms [result]
-- Returns 1, also when it is sent twice, or 0 if another run has taken the effect over and nothing was done.
local token, recorded = unpack(call('HMGET', KEYS[1], 'token', 'result'))
if token and token ~= ARGV[1] then return 0 end
if recorded then return recorded == ARGV[3] and 1 or 0 end
ask(KEYS[1], 'HSET', 'PEXPIRE')
call('HDEL', KEYS[1], 'until', 'run') -- needs no memory: a full server keeps the result, too
if ARGV[3] then call('HSET', KEYS[1], 'token', ARGV[1], 'result', ARGV[3]) end
call('PEXPIRE', KEYS[1], whole(ARGV[2], 1))
publish(KEYS[1], ARGV[3] and 'done' or 'free')
return 1
