-- count: add a worker's counters to the window they belong to.
-- KEYS: stats
-- ARGV: ttl_s name amount...
for i = 2, #ARGV, 2 do call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
call('EXPIRE', KEYS[1], ARGV[1])
return 0
