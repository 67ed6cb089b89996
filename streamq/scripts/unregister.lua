-- unregister: a schedule is removed.
-- KEYS: schedules ticks ticked
-- ARGV: name channel
-- Returns 1, or 0 if there is none of that name.
local known = call('HDEL', KEYS[1], ARGV[1]) + call('ZREM', KEYS[2], ARGV[1])
call('HDEL', KEYS[3], ARGV[1])
if known > 0 then call('PUBLISH', ARGV[2], 'schedules') end
return math.min(known, 1)
