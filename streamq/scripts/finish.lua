-- finish: like ack, for one delivery, and what follows from its success happens in the same step.
-- KEYS: stream crashes consequence...
-- ARGV: group id consequence...
-- Returns its id if it had been settled before: then nothing follows.
look_over(3, 3)
call('HDEL', KEYS[2], ARGV[2], ARGV[2] .. ':alone')
local late = call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0
leave(KEYS[1], {ARGV[2]})
if late then return {ARGV[2]} end
carry_out(3, 3)
return {}
