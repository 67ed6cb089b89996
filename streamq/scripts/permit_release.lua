-- permit_release: runs have ended; their permits are reserved for the first waiters.
-- KEYS: permits called line limits delayed...
-- ARGV: name max reserve_ms channel run...
-- Returns {how many runs still had their permit, foreign waiter...}.
local released = call('ZREM', KEYS[1], unpack(ARGV, 5))
reserve_permits(tonumber(ARGV[2]), ARGV[3], ARGV[4])
schedule_sweep(ARGV[1])
return {released, unpack(foreign)}
