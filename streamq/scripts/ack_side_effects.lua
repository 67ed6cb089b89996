-- ack_side_effects: like ack, for one delivery, with the side effects of its success.
-- KEYS: stream crashes side_effect...
-- ARGV: group id side_effect...
-- Returns its id if it had been settled before: then no side effect is carried out.
local stream, group, id = KEYS[1], ARGV[1], ARGV[2]
check_side_effects(3, 3)
local gone, alone = deletable(stream, group, {id})
local held = redis.pcall('XPENDING', stream, group, id, id, 1)
if held.err and not string.find(held.err, 'NOGROUP', 1, true) then error(held) end -- NOGROUP: somebody has destroyed it
local late = held.err or #held == 0
if late and alone then
  local entry = redis.pcall('XRANGE', stream, id, id)
  late = entry.err or #entry == 0
end
ask(stream, 'XACK')
begin_settling(stream)
if not late then carry_out(3, 3) end
call('XACK', stream, group, id)
delete_settled(stream, gone)
clear_crashes({KEYS[2]}, {{id}})
return counted(late and {id} or {}, late and {1} or {})
