-- ack_results: like ack, and each result is kept if its delivery had not been settled before.
-- KEYS: stream crashes result...
-- ARGV: group, twice the number of runs with the same TTL, for each run: ttl_ms count, then id... payload...
-- Returns the ids of those that had been settled before.
local late, places, at, n = {}, {}, 2 + ARGV[2], #KEYS - 2
local ids, ttls = {unpack(ARGV, at + 1, at + n)}, {}
for run = 3, at, 2 do ttls[run] = whole(ARGV[run], 1) end
local gone, alone = deletable(KEYS[1], ARGV[1], ids)
local evidence = crashes_exist({KEYS[2]})
ask(KEYS[3], 'SET')
local run, left = 1, 0
for i, id in ipairs(ids) do
  if left == 0 then run, left = run + 2, tonumber(ARGV[run + 3]) end
  left = left - 1
  if call('XACK', KEYS[1], ARGV[1], id) == 1 or (alone and call('XDEL', KEYS[1], id) == 1) then
    call('SET', KEYS[i + 2], ARGV[at + n + i], 'PX', ttls[run])
    publish(KEYS[i + 2], ARGV[at + n + i])
  else
    late[#late + 1], places[#places + 1] = id, i
  end
end
delete_settled(KEYS[1], gone)
if evidence then clear_crashes({KEYS[2]}, {ids}) end
return counted(late, places)
