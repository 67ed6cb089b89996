-- postpone: a delivery that is to run again later moves to the delayed set.
-- KEYS: stream crashes delayed messages
-- ARGV: group consumer id delay_ms member message channel
-- Returns 1. 2: it is to be cancelled, and is still held. 0: this consumer holds it no longer.
if not holds_or_dropped(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return counted(0, {1}) end
local evidence, cancelled = marks_of(KEYS[2], ARGV[3])
if cancelled then return 2 end
local gone, member, due = deletable(KEYS[1], ARGV[1], {ARGV[3]}), ARGV[5], whole(clock() + ARGV[4])
if call('ZSCORE', KEYS[3], member) then member = member .. '|' .. ARGV[3] end -- the same id, sent twice
ask(KEYS[3], 'ZADD')
ask(KEYS[1], 'XACK')
begin_settling(KEYS[1])
call('HSET', KEYS[4], member, ARGV[6]) -- first: only this may still be refused
call('ZADD', KEYS[3], due, member)
call('XACK', KEYS[1], ARGV[1], ARGV[3])
delete_settled(KEYS[1], gone)
if evidence then clear_crashes({KEYS[2]}, {{ARGV[3]}}) end
announce(KEYS[3], ARGV[7], member)
return counted(1, {})
