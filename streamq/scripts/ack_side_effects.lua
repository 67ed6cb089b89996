-- ack_side_effects: like ack, for one delivery, with the side effects of its success.
-- KEYS: stream crashes side_effect...
-- ARGV: group id side_effect...
-- Returns its id if it had been settled before: then no side effect is carried out.
check_types(3, 3)
call('HDEL', KEYS[2], ARGV[2], ARGV[2] .. ':alone')
local late = call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0
remove_settled(KEYS[1], {ARGV[2]})
if late then return {ARGV[2]} end
carry_out(3, 3)
return {}
