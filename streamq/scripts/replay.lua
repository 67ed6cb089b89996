-- replay: a dead letter becomes a task again, unless another client took it first.
-- KEYS: dead stream
-- ARGV: dead_entry_id field value...
-- Returns the new entry's id, or '' if the dead letter is gone.
if #call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return '' end
ask(KEYS[1], 'XDEL')
local entry = call('XADD', KEYS[2], '*', unpack(ARGV, 2)) -- first: if it is refused, the dead letter stays
call('XDEL', KEYS[1], ARGV[1])
return entry
