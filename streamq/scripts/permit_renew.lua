-- permit_renew: renew the permits of runs. A run whose permit was over gets it again, even beyond the maximum.
-- KEYS: permits called line limits delayed...
-- ARGV: name max lease_ms reserve_ms channel run...
-- Returns {how many permits were over, foreign waiter...}.
local lease_end, lost = whole(clock() + ARGV[3]), 0
call('PEXPIRE', KEYS[1], 86400000) -- a first write that needs no memory
for i = 6, #ARGV do lost = lost + call('ZADD', KEYS[1], lease_end, ARGV[i]) end
reserve_permits(tonumber(ARGV[2]), ARGV[4], ARGV[5])
schedule_sweep(ARGV[1])
return {lost, unpack(foreign)}
