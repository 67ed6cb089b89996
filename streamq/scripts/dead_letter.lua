-- dead_letter: a delivery that will not run again moves to the dead letter stream, which is bounded.
-- KEYS: stream crashes dead side_effect...
-- ARGV: group consumer id max_entries max_age_ms number_of_parts field value... side_effect...
-- Returns 1, or 0 if this consumer holds the delivery no longer.
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return 0 end
call('XLEN', KEYS[3]) -- this and the next line: a key of another type refuses before any change
check_types(4, 7 + ARGV[6])
call('HDEL', KEYS[2], ARGV[3], ARGV[3] .. ':alone')
call('XACK', KEYS[1], ARGV[1], ARGV[3])
remove_settled(KEYS[1], {ARGV[3]})
call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[4], '*', unpack(ARGV, 7, 6 + ARGV[6]))
if ARGV[5] ~= '0' then -- not XTRIM MINID: that of Redis 6.2.5 removes everything
  local oldest = string.format('%.0f', clock() - ARGV[5])
  for _, entry in ipairs(call('XRANGE', KEYS[3], '-', '(' .. oldest, 'COUNT', 100)) do call('XDEL', KEYS[3], entry[1]) end
end
carry_out(4, 7 + ARGV[6])
return 1
