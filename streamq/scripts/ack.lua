-- ack: deliveries whose handlers succeeded are deleted, whichever consumer holds them: the work is done.
-- KEYS: for each tier: stream crashes
-- ARGV: group per_entry, then for each tier: count id...
-- Returns for each tier the entries that had been settled before: their ids if `per_entry` is 1, else '' for each.
local reply, names, settled, gone, alone, at = {}, {}, {}, {}, {}, 3
for k = 1, #KEYS, 2 do
  local ids = {unpack(ARGV, at + 1, at + ARGV[at])}
  at = at + ARGV[at] + 1
  names[#names + 1], settled[#settled + 1] = KEYS[k + 1], ids
  gone[#gone + 1], alone[#alone + 1] = deletable(KEYS[k], ARGV[1], ids)
end
local evidence = crashes_exist(names)
for t, ids in ipairs(settled) do
  local late, stream = {}, KEYS[2 * t - 1]
  if ARGV[2] == '1' then
    for _, id in ipairs(ids) do
      if call('XACK', stream, ARGV[1], id) == 0 and not (alone[t] and call('XDEL', stream, id) == 1) then late[#late + 1] = id end
    end
    delete_settled(stream, gone[t])
  else
    local acked = call('XACK', stream, ARGV[1], unpack(ids))
    local deleted = delete_settled(stream, gone[t])
    for n = 1, #ids - (alone[t] and deleted or acked) do late[n] = '' end
  end
  reply[t] = late
end
if evidence then clear_crashes(names, settled) end
return reply
