-- dead_letter: a delivery that will not run again moves to the dead letter stream, which is bounded.
-- KEYS: stream crashes dead side_effect...
-- ARGV: group consumer id max_entries max_age_ms number_of_parts field value... side_effect...
-- Returns 1, or 0 if this consumer holds the delivery no longer.
local stream, group, id = KEYS[1], ARGV[1], ARGV[3]
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
check_side_effects(4, 7 + ARGV[6])
local gone, old = deletable(stream, group, {id}), {}
if ARGV[5] ~= '0' then -- not XTRIM MINID: that of Redis 6.2.5 removes everything
  old = call('XRANGE', KEYS[3], '-', '(' .. whole(clock() - ARGV[5]), 'COUNT', 100)
end
ask(stream, 'XACK')
if #old > 0 then ask(KEYS[3], 'XDEL') end
begin_settling(stream)
call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[4], '*', unpack(ARGV, 7, 6 + ARGV[6])) -- first: only this may still be refused
carry_out(4, 7 + ARGV[6])
call('XACK', stream, group, id)
delete_settled(stream, gone)
clear_crashes({KEYS[2]}, {{id}})
for _, entry in ipairs(old) do call('XDEL', KEYS[3], entry[1]) end
return 1
