-- ack: deliveries whose handlers succeeded are deleted, whichever consumer holds them: the work is done.
-- KEYS: for each tier: stream crashes
-- ARGV: group per_entry, then for each tier: count id...
-- Returns for each tier the entries that had been settled before: their ids if `per_entry` is 1, else '' for each.
-- An entry is settled by its XACK. In a stream that one group reads, one that is still there is not settled (see deletable).
local reply, names, settled, gone, alone, at, place, places = {}, {}, {}, {}, {}, 3, 0, {}
for k = 1, #KEYS, 2 do
  local ids = {unpack(ARGV, at + 1, at + ARGV[at])}
  at = at + ARGV[at] + 1
  names[#names + 1], settled[#settled + 1] = KEYS[k + 1], ids
  gone[#gone + 1], alone[#alone + 1] = deletable(KEYS[k], ARGV[1], ids)
end
local evidence = crashes_exist(names)
for t, ids in ipairs(settled) do
  local late, stream = {}, KEYS[2 * t - 1]
  local function note_late(i, id)
    late[#late + 1], places[#places + 1] = ARGV[2] == '1' and id or '', place + i
  end
  if ARGV[2] == '1' or not alone[t] then
    for i, id in ipairs(ids) do
      if call('XACK', stream, ARGV[1], id) == 0 and not (alone[t] and call('XDEL', stream, id) == 1) then note_late(i, id) end
    end
    delete_settled(stream, gone[t])
  elseif call('XACK', stream, ARGV[1], unpack(ids)) == #ids then delete_settled(stream, ids)
  else
    for i, id in ipairs(ids) do
      if call('XDEL', stream, id) == 0 then note_late(i, id) end
    end
  end
  reply[t], place = late, place + #ids
end
if evidence then clear_crashes(names, settled) end
return counted(reply, places)
