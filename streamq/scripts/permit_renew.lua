-- permit_renew: runs go on; those whose permits were over have them again, even beyond the bound.
-- KEYS: permits called line limits delayed...
-- ARGV: name max lease_ms grant_ms channel run...
-- Returns {how many permits were over, foreign place...}.
local until_then, lost = string.format('%.0f', clock() + ARGV[3]), 0
call('PEXPIRE', KEYS[1], 86400000) -- a first write that needs no memory
for i = 6, #ARGV do lost = lost + call('ZADD', KEYS[1], until_then, ARGV[i]) end
hand_out(tonumber(ARGV[2]), ARGV[4], ARGV[5])
note(ARGV[1])
return {lost, unpack(foreign)}
