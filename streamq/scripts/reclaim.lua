-- reclaim: take over what was handed back, what dead consumers held, and what nobody renews.
-- Of suspects, which run alone, one at most: the others are for other workers, or for the next sweep.
-- KEYS: stream alive leases crashes
-- ARGV: group consumer parked min_idle_ms margin_ms cursor count crashes_ttl_ms max_crashes suspect_after deadline_ms
-- Returns {next cursor, deliveries as {id, fields, who died with it, 1 if run alone, 1 if its owner died}, suspects left}.
local stream, group, me, parked, min_idle = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now, room, taken, suspects, left = clock(), tonumber(ARGV[7]), {}, 0, 0
-- It lay in a socket while the server stood still, and all leases ended: its sender knows better by now.
if now > tonumber(ARGV[11]) then return {ARGV[6], taken, 0} end

local function take(id, owner, idle, died)
  local crashes, convicted = call('HGET', KEYS[4], id) or '', 0
  local suspect = deaths(crashes) + died >= tonumber(ARGV[10])
  if suspect then suspects, left = suspects + 1, left + math.min(suspects, 1) end
  if #taken >= room or (suspect and suspects > 1) then return end
  local got = call('XCLAIM', stream, group, me, idle, id)
  if got[1] then
    if died == 1 then crashes, convicted = blame(KEYS[4], id, crashes, owner, ARGV[8], tonumber(ARGV[9])) end
    taken[#taken + 1] = {id, got[1][2], crashes, convicted, died}
  elseif #call('XRANGE', stream, id, id) == 0 then
    call('XACK', stream, group, id) -- deleted by hand
  end
end

local owners, times = holders(stream, group, KEYS[2])
for k, owner in ipairs(owners) do
  local some, alive = room - #taken + 100, tonumber(times[k] or now) -- suspects must not hide what is behind them
  if #taken < room and owner == parked then
    for _, row in ipairs(call('XPENDING', stream, group, '-', '+', some, owner)) do take(row[1], owner, 0, 0) end
  elseif #taken < room and owner ~= me and alive < now then
    local rows = call('XPENDING', stream, group, 'IDLE', min_idle, '-', '+', some, owner)
    for _, row in ipairs(rows) do take(row[1], owner, min_idle, 1) end
  end
end

local cursor = ARGV[6]
if #taken < room and left == 0 then -- XAUTOCLAIM would take those that are left, without blame
  -- Owners live, or never said that they do: only what has not been renewed for the longest of their leases.
  local idle = math.max(longest(KEYS[2], KEYS[3], now), tonumber(min_idle)) + ARGV[5]
  local swept = call('XAUTOCLAIM', stream, group, me, idle, cursor, 'COUNT', room - #taken)
  cursor = swept[1]
  for _, entry in ipairs(swept[2]) do
    if entry then
      taken[#taken + 1] = {entry[1], entry[2], call('HGET', KEYS[4], entry[1]) or '', 0, 0}
    else -- before Redis 7: deleted by hand, and not said which
      forget(stream, group, me)
    end
  end
end
return {cursor, taken, left}
