-- permit_sweep: what the dead held under a limit, or did not come for, goes to those who wait.
-- KEYS: permits called line limits delayed...
-- ARGV: name grant_ms channel
-- Returns {0, foreign place...}.
hand_out(nil, ARGV[2], ARGV[3])
note(ARGV[1])
return {0, unpack(foreign)}
