-- operation_state: an operation goes from one state to another: it is stopped, goes on, or has finished.
-- KEYS: operation dead
-- ARGV: from to ttl_ms place('': any; else it must have come there)
-- Returns the state that it has now, '' if there is no such operation.
local found = call('HMGET', KEYS[1], 'state', 'at')
if found[1] ~= ARGV[1] or (ARGV[4] ~= '' and ARGV[4] ~= found[2]) then return found[1] or '' end
call('XLEN', KEYS[2])
ask(KEYS[1], 'HSET', 'PEXPIRE')
local now = whole(clock())
begin_settling(KEYS[2])
call('HSET', KEYS[1], 'state', ARGV[2], 'changed_at', now)
call('PEXPIRE', KEYS[1], whole(ARGV[3], 1))
return ARGV[2]
