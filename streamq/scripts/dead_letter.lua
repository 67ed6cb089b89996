-- dead_letter: a delivery that will not run again moves to the dead letter stream, which is bounded.
-- KEYS: stream crashes dead totals side_effect...
-- ARGV: group consumer id max_entries max_age_ms max_bytes(0: any) totals_ttl_s(0: not counted) cancellable(1: not if it is to be cancelled) number_of_parts field value... side_effect...
-- Returns 1. 2: it is to be cancelled, and is still held. 0: this consumer holds it no longer. Dead letters that are dropped are counted in `totals`.
local stream, group, id, most, bytes = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6])
if not holds_or_dropped(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return counted(0, {1}) end
local evidence, cancelled = marks_of(KEYS[2], id)
if cancelled and ARGV[8] == '1' then return 2 end
check_side_effects(5, 10 + ARGV[9])
local gone, old, before = deletable(stream, group, {id}), {}, call('XLEN', KEYS[3])
if ARGV[5] ~= '0' then -- not XTRIM MINID: that of Redis 6.2.5 removes everything
  old = call('XRANGE', KEYS[3], '-', '(' .. whole(clock() - ARGV[5]), 'COUNT', 100)
end
if bytes > 0 and before > 0 then -- estimated from the oldest ones; a server that does not say it bounds entries alone
  local used = redis.pcall('MEMORY', 'USAGE', KEYS[3], 'SAMPLES', 100)
  if type(used) == 'number' and used > bytes then
    most = math.min(most, before + 1 - math.min(100, math.ceil(before * (1 - bytes / used))))
  end
end
ask(stream, 'XACK')
if #old > 0 then ask(KEYS[3], 'XDEL') end
begin_settling(stream)
call('XADD', KEYS[3], 'MAXLEN', '=', whole(most, 1), '*', unpack(ARGV, 10, 9 + ARGV[9])) -- first: only this may still be refused
carry_out(5, 10 + ARGV[9])
call('XACK', stream, group, id)
delete_settled(stream, gone)
if evidence then clear_crashes({KEYS[2]}, {{id}}) end
for _, entry in ipairs(old) do call('XDEL', KEYS[3], entry[1]) end
local dropped = before + 1 - call('XLEN', KEYS[3])
if dropped > 0 and ARGV[7] ~= '0' then count_dropped(KEYS[4], dropped, ARGV[7]) end
return counted(1, {})
