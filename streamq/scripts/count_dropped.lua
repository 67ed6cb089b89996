-- count_dropped: dead letters that an operator's bound has removed are counted.
-- KEYS: totals
-- ARGV: dropped ttl_s
-- Returns 1.
return count_dropped(KEYS[1], ARGV[1], ARGV[2]) or 1
