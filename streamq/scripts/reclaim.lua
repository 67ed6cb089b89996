-- reclaim: take over deliveries that were released, that dead consumers held, or that nobody renews.
-- At most one suspect: suspects run in isolation, so the others are for other workers, or for the next sweep.
-- KEYS: stream alive leases crashes
-- ARGV: group consumer released min_idle_ms margin_ms cursor count crashes_ttl_ms max_crashes suspect_after deadline_ms
-- Returns {next cursor, deliveries, suspects left, ids of those to be cancelled}. A delivery: {id, fields, crashed workers, 1 if the crash is proven, 1 if its owner died}.
local stream, group, me, min_idle, now, room = KEYS[1], ARGV[1], ARGV[2], ARGV[4], clock(), tonumber(ARGV[7])
local taken, suspects, left, asked = {}, 0, 0, 0
-- The command waited in a socket while the server was stopped and all leases ended: its sender has newer knowledge.
if now > tonumber(ARGV[11]) then return {ARGV[6], taken, 0, taken} end
ask_to_claim(unpack(KEYS))

local function take(id, owner, idle, died)
  local crashes, proven = evidence_of(KEYS[4], id) or '', 0
  local suspect = crash_count(crashes) + died >= tonumber(ARGV[10])
  if suspect then suspects, left = suspects + 1, left + math.min(suspects, 1) end
  if #taken >= room or (suspect and suspects > 1) then return end
  local fields = claim(stream, group, me, idle, id)
  if not fields then return end
  if died == 1 then crashes, proven = record_crash(KEYS[4], id, crashes, owner, ARGV[8], tonumber(ARGV[9])) end
  taken[#taken + 1] = {id, fields, crashes, proven, died}
end

local owners, times = holders(stream, group, KEYS[2])
for k = 1, #owners do
  if #owners > PIECE then k = (k + now) % #owners + 1 end -- of very many, others each time
  local owner, some, alive = owners[k], room - #taken + 100, tonumber(times[k] or now) -- suspects must not hide the entries behind them
  local rows, idle, died = {}, 0, 0
  if #taken >= room or asked >= PIECE then break
  elseif owner == ARGV[3] then rows = call('XPENDING', stream, group, '-', '+', some, owner)
  elseif owner ~= me and alive < now then
    rows, idle, died, asked = call('XPENDING', stream, group, 'IDLE', min_idle, '-', '+', some, owner), min_idle, 1, asked + 1
  end
  for _, row in ipairs(rows) do take(row[1], owner, idle, died) end
end
local cursor = ARGV[6]
if #taken < room and left == 0 then -- XAUTOCLAIM would take the suspects that are left, without noting the crash
  local longest = math.max(longest_lease(KEYS[2], KEYS[3], now), tonumber(min_idle))
  cursor = claim_stray(stream, group, me, whole(longest + ARGV[5]), cursor, room, taken)
end
return {cursor, taken, left, cancelled_of(KEYS[4], taken)}
