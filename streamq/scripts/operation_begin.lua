-- operation_begin: an operation over dead letters is noted, with its filter and where it begins and ends.
-- KEYS: operation operations dead
-- ARGV: id ttl_ms most field value...
-- `operations` has the newest `most` of all, and what is older than their TTL leaves it.
-- Returns 1, or 0 if there is one of this id.
if call('HLEN', KEYS[1]) > 0 then return 0 end
call('ZCARD', KEYS[2])
call('XLEN', KEYS[3])
ask(KEYS[1], 'HSET', 'PEXPIRE')
ask(KEYS[2], 'ZADD', 'PEXPIRE', 'ZREMRANGEBYSCORE', 'ZREMRANGEBYRANK')
local now = whole(clock())
begin_settling(KEYS[3])
call('HSET', KEYS[1], 'started_at', now, 'changed_at', now, unpack(ARGV, 4))
call('PEXPIRE', KEYS[1], whole(ARGV[2], 1))
call('ZADD', KEYS[2], now, ARGV[1])
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. whole(now - 4 * ARGV[2]))
call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[3])
call('PEXPIRE', KEYS[2], whole(4 * ARGV[2], 1))
return 1
