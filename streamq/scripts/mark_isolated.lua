-- mark_isolated: a consumer starts a suspect in isolation: it runs nothing beside it.
-- KEYS: stream crashes
-- ARGV: group consumer id ttl_ms
-- Returns 1, or 0 if this consumer holds the delivery no longer.
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
ask(KEYS[2], 'HSET', 'PEXPIRE')
-- If a server out of memory refuses this, or the key is somebody else's, the suspect runs all the same.
local marked = redis.pcall('HSET', KEYS[2], ARGV[3] .. ':alone', ARGV[2])
local why = type(marked) == 'table' and marked.err or ''
if why == '' then call('PEXPIRE', KEYS[2], ARGV[4]) end
if why == '' or string.find(why, 'OOM', 1, true) or string.find(why, 'WRONGTYPE', 1, true) then return 1 end
return marked
