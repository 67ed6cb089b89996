-- add_counters: counters that no settlement has written are added to a window of time.
-- KEYS: stats
-- ARGV: ttl_s name amount...
-- Returns 1.
local why = add_counters(KEYS[1], table.remove(ARGV, 1), ARGV)
return why and {err = why} or 1
