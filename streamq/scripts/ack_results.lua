-- ack_results: like ack, and each result is kept if its delivery had not been settled before.
-- KEYS: stream crashes result...
-- ARGV: group, then for each result: id ttl_ms payload
-- Returns those that had been settled before.
local ids, late = {}, {}
for i = 3, #KEYS do
  local at = 2 + (i - 3) * 3
  local id, ttl, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if call('XACK', KEYS[1], ARGV[1], id) == 1 then
    call('SET', KEYS[i], payload, 'PX', ttl)
    call('PUBLISH', KEYS[i], payload)
  else
    late[#late + 1] = id
  end
  ids[#ids + 1] = id
end
leave(KEYS[1], ids)
forgive({KEYS[2]}, {ids})
return late
