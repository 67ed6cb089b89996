-- permit_release: runs have ended; their permits are reserved for the first waiters.
-- KEYS: permits called line limits delayed...
-- ARGV: name max reserve_ms channel run...
-- Returns {how many runs still had their permit, foreign waiter...}.
local released = 0
for i = 5, #ARGV do released = released + call('ZREM', KEYS[1], ARGV[i]) end
reserve_permits(tonumber(ARGV[2]), ARGV[3], ARGV[4])
schedule_sweep(ARGV[1])
return {released, unpack(foreign)}
