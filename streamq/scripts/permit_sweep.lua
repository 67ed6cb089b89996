-- permit_sweep: reserve permits for waiters that dead workers held, or that were reserved and not acquired.
-- KEYS: permits called line limits delayed...
-- ARGV: name reserve_ms channel
-- Returns {0, foreign waiter...}.
reserve_permits(nil, ARGV[2], ARGV[3])
schedule_sweep(ARGV[1])
return {0, unpack(foreign)}
