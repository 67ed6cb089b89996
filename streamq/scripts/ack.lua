-- ack: deliveries whose handlers succeeded leave. Whoever holds them: the work is done.
-- KEYS: stream crashes
-- ARGV: group each id...
-- Returns those that had been settled before; which ones they are only if `each` is 1.
local ids, late = {unpack(ARGV, 3)}, {}
if ARGV[2] == '1' then
  for _, id in ipairs(ids) do
    if call('XACK', KEYS[1], ARGV[1], id) == 0 then late[#late + 1] = id end
  end
else
  for k = 1, #ids - call('XACK', KEYS[1], ARGV[1], unpack(ids)) do late[k] = '' end
end
leave(KEYS[1], ids)
if call('EXISTS', KEYS[2]) == 1 then -- rare: while somebody has died
  for _, id in ipairs(ids) do call('HDEL', KEYS[2], id, id .. ':alone') end
end
return late
