-- skip: a delivery that names another group is acknowledged without a run. It is kept if nobody else would have it.
-- KEYS: stream crashes
-- ARGV: group consumer id named_group
-- Returns 1. 2: kept, because the named group does not exist, and no other group needs it. 0: held no longer.
local stream, group, id = KEYS[1], ARGV[1], ARGV[3]
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then return counted(0, {1}) end
local gone, exists = deletable(stream, group, {id}), false
for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
  for i = 1, #flat, 2 do exists = exists or (flat[i] == 'name' and flat[i + 1] == ARGV[4]) end
end
if #gone > 0 and not exists then return 2 end
ask(stream, 'XACK')
call('XACK', stream, group, id)
delete_settled(stream, gone)
clear_crashes({KEYS[2]}, {{id}})
return counted(1, {})
