-- postpone: a delivery that is to run again later moves to the delayed set.
-- KEYS: stream crashes delayed messages
-- ARGV: group consumer id delay_ms member message channel
-- Returns 1, or 0 if this consumer holds the delivery no longer.
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
local member = ARGV[5]
if call('ZSCORE', KEYS[3], member) then member = member .. ':' .. ARGV[3] end -- the same id, sent twice
call('HLEN', KEYS[4]) -- a key of another type refuses before any change, as in the line above
call('HDEL', KEYS[2], ARGV[3], ARGV[3] .. ':alone')
call('XACK', KEYS[1], ARGV[1], ARGV[3])
remove_settled(KEYS[1], {ARGV[3]})
delay(KEYS[3], KEYS[4], ARGV[7], clock() + ARGV[4], member, ARGV[6])
return 1
