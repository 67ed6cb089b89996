-- stop_workflow: a workflow is cancelled: no further step of it is sent, and those that were not sent are cancelled.
-- KEYS: workflow result... (of the steps that keep one)
-- ARGV: group payload kept_ms number_of_old old... (what its groups have joined) ttl_ms... (of the result of each step; 0: it keeps none)
-- Returns {how many steps it has cancelled, {field value... of the record before}}. It changes nothing if all steps have ended.
local group, old, key, open, unsent, fields = ':' .. ARGV[1], math.max(0, tonumber(ARGV[4])), 1, false, {}, {}
local flat = call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
for at = 5 + old, #ARGV do
  local number, keeps = at - 4 - old, ARGV[at] ~= '0'
  if keeps then key = key + 1 end
  local state = fields[number .. group] or fields[tostring(number)]
  if not state then unsent[#unsent + 1] = {number .. group, keeps and key, ARGV[at]} end
  open = open or not state or string.find(state, '^sent') ~= nil
end
if not fields.plan or not open then return {0, flat} end
ask(KEYS[1], 'HSET', 'PEXPIRE')
for _, one in ipairs(unsent) do
  if one[2] then ask(KEYS[one[2]], 'SET') end
end
call('PEXPIRE', KEYS[1], whole(math.max(call('PTTL', KEYS[1]), ARGV[3]), 1)) -- first: it needs no memory, so a full server cancels, too
call('HSET', KEYS[1], 'cancelled', '1')
for _, one in ipairs(unsent) do
  call('HSET', KEYS[1], one[1], 'cancelled')
  if one[2] then
    call('SET', KEYS[one[2]], ARGV[2], 'PX', whole(one[3], 1))
    publish(KEYS[one[2]], ARGV[2])
  end
end
delete_old(5, old)
return {#unsent, flat}
