-- permit_give: runs have ended; who waits for their permits is called.
-- KEYS: permits called line limits delayed...
-- ARGV: name max grant_ms channel run...
-- Returns {how many of them still had their permit, foreign place...}.
local given = call('ZREM', KEYS[1], unpack(ARGV, 5))
hand_out(tonumber(ARGV[2]), ARGV[3], ARGV[4])
note(ARGV[1])
return {given, unpack(foreign)}
