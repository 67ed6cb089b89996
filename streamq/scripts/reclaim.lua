-- reclaim: take over deliveries that were released, that dead consumers held, or that nobody renews.
-- At most one suspect: suspects run in isolation, so the others are for other workers, or for the next sweep.
-- KEYS: stream alive leases crashes
-- ARGV: group consumer released min_idle_ms margin_ms cursor count crashes_ttl_ms max_crashes suspect_after deadline_ms
-- Returns {next cursor, deliveries, suspects left}. A delivery: {id, fields, crashed workers, 1 if the crash is proven, 1 if its owner died}.
local stream, group, me, released, min_idle = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now, room, taken, suspects, left = clock(), tonumber(ARGV[7]), {}, 0, 0
-- The command waited in a socket while the server was stopped and all leases ended: its sender has newer knowledge.
if now > tonumber(ARGV[11]) then return {ARGV[6], taken, 0} end

local function take(id, owner, idle, died)
  local crashes, proven = call('HGET', KEYS[4], id) or '', 0
  local suspect = crash_count(crashes) + died >= tonumber(ARGV[10])
  if suspect then suspects, left = suspects + 1, left + math.min(suspects, 1) end
  if #taken >= room or (suspect and suspects > 1) then return end
  local got = call('XCLAIM', stream, group, me, idle, id)
  if got[1] then
    if died == 1 then crashes, proven = record_crash(KEYS[4], id, crashes, owner, ARGV[8], tonumber(ARGV[9])) end
    taken[#taken + 1] = {id, got[1][2], crashes, proven, died}
  elseif #call('XRANGE', stream, id, id) == 0 then
    call('XACK', stream, group, id) -- deleted by hand
  end
end

local owners, times = holders(stream, group, KEYS[2])
for k, owner in ipairs(owners) do
  local some, alive = room - #taken + 100, tonumber(times[k] or now) -- suspects must not hide the entries behind them
  if #taken < room and owner == released then
    for _, row in ipairs(call('XPENDING', stream, group, '-', '+', some, owner)) do take(row[1], owner, 0, 0) end
  elseif #taken < room and owner ~= me and alive < now then
    local rows = call('XPENDING', stream, group, 'IDLE', min_idle, '-', '+', some, owner)
    for _, row in ipairs(rows) do take(row[1], owner, min_idle, 1) end
  end
end

local cursor = ARGV[6]
if #taken < room and left == 0 then -- XAUTOCLAIM would take the suspects that are left, without noting the crash
  -- Their owners live, or are not known: take only entries that were not renewed for the longest lease.
  local idle = math.max(longest_lease(KEYS[2], KEYS[3], now), tonumber(min_idle)) + ARGV[5]
  local swept = call('XAUTOCLAIM', stream, group, me, idle, cursor, 'COUNT', room - #taken)
  cursor = swept[1]
  for _, entry in ipairs(swept[2]) do
    if entry then
      taken[#taken + 1] = {entry[1], entry[2], call('HGET', KEYS[4], entry[1]) or '', 0, 0}
    else -- before Redis 7: deleted by hand, and the reply does not tell which
      ack_deleted(stream, group, me)
    end
  end
end
return {cursor, taken, left}
