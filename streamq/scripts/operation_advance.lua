-- operation_advance: an operation goes on to a place; these dead letters on the way are removed.
-- KEYS: operation dead
-- ARGV: from to examined passed ttl_ms error('': none) entry_id...
-- Returns {number of removed letters}, or {0, why}: it may not go on from there ('gone', 'moved', or its state).
local why = kept_from(KEYS[1], ARGV[1])
if why then return {0, why} end
call('XLEN', KEYS[2]) -- a key of another type refuses before any change
if #ARGV > 6 then ask(KEYS[2], 'XDEL') end
begin_settling(KEYS[2])
local removed = #ARGV > 6 and call('XDEL', KEYS[2], unpack(ARGV, 7)) or 0
go_on(KEYS[1], ARGV[2], ARGV[5], ARGV[3], removed, ARGV[4], ARGV[6])
return {removed}
