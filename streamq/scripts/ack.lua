-- ack: deliveries whose handlers succeeded are deleted, whichever consumer holds them: the work is done.
-- KEYS: for each tier: stream crashes
-- ARGV: group per_entry, then for each tier: count id...
-- Returns for each tier the entries that had been settled before: their ids if `per_entry` is 1, else '' for each.
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
  remove_settled(KEYS[k], ids)
end
clear_crashes(names, settled)
return reply
