-- mark_isolated: a consumer starts a suspect in isolation: it runs nothing beside it.
-- KEYS: stream crashes
-- ARGV: group consumer id ttl_ms
-- Returns 1, or 0 if this consumer holds the delivery no longer.
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
redis.pcall('HSET', KEYS[2], ARGV[3] .. ':alone', ARGV[2]) -- if a server out of memory refuses this, the suspect runs all the same
call('PEXPIRE', KEYS[2], ARGV[4])
return 1
