-- ack: deliveries whose handlers succeeded leave. Whoever holds them: the work is done.
-- KEYS: for each tier: stream crashes
-- ARGV: group each, then for each tier: count id...
-- Returns for each tier those that had been settled before; which ones they are only if `each` is 1.
local reply, names, settled, at = {}, {}, {}, 3
for k = 1, #KEYS, 2 do
  local ids, late = {unpack(ARGV, at + 1, at + ARGV[at])}, {}
  at = at + ARGV[at] + 1
  if ARGV[2] == '1' then
    for _, id in ipairs(ids) do
      if call('XACK', KEYS[k], ARGV[1], id) == 0 then late[#late + 1] = id end
    end
  else
    for n = 1, #ids - call('XACK', KEYS[k], ARGV[1], unpack(ids)) do late[n] = '' end
  end
  reply[#reply + 1], names[#names + 1], settled[#settled + 1] = late, KEYS[k + 1], ids
  leave(KEYS[k], ids)
end
forgive(names, settled)
return reply
