-- unregister: a schedule is removed.
-- KEYS: schedules ticks ticked
-- ARGV: name channel
-- Returns 1, or 0 if there is none of that name.
local known = call('HEXISTS', KEYS[1], ARGV[1]) == 1 or call('ZSCORE', KEYS[2], ARGV[1])
call('ZCARD', KEYS[2]) -- this and the next line: a key of another type refuses before any change
call('HLEN', KEYS[3])
ask(KEYS[2], 'ZREM')
ask(KEYS[3], 'HDEL')
call('HDEL', KEYS[1], ARGV[1])
call('ZREM', KEYS[2], ARGV[1])
call('HDEL', KEYS[3], ARGV[1])
if known then publish(ARGV[2], 'schedules') end
return known and 1 or 0
