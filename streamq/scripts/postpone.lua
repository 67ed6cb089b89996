-- postpone: a delivery that its holder wants to run again later moves to the delayed set.
-- KEYS: stream crashes delayed messages
-- ARGV: group consumer id delay_ms member message channel
-- Returns 1, or 0 if this consumer does not hold the delivery (any more).
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
call('XACK', KEYS[1], ARGV[1], ARGV[3])
leave(KEYS[1], {ARGV[3]})
call('HDEL', KEYS[2], ARGV[3], ARGV[3] .. ':alone')
local member = ARGV[5]
if call('ZSCORE', KEYS[3], member) then member = member .. ':' .. ARGV[3] end -- the same id, sent twice
delay(KEYS[3], KEYS[4], ARGV[7], clock() + ARGV[4], member, ARGV[6])
return 1
