-- add_counters: the counters of a worker are added to a window of time.
-- KEYS: stats
-- ARGV: ttl_s name amount...
for i = 2, #ARGV, 2 do call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
call('EXPIRE', KEYS[1], ARGV[1])
return 0
