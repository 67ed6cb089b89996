-- Prepended to scripts that add to the counters of a window.
-- Add amounts to its fields; its TTL begins when a field is new. Somebody else's value (no number, a key of another type) loses what
-- would be added to it. Returns why the server refuses (NOPERM, OOM), having added nothing, or nil.
local function add_counters(stats, ttl, counters)
  local may, why = pcall(ask, stats, 'HINCRBY', 'EXPIRE')
  if not may then return type(why) == 'table' and why.err or why end
  local new = false
  for i = 1, #counters, 2 do
    local sum = counters[i + 1] ~= '0' and redis.pcall('HINCRBY', stats, counters[i], counters[i + 1])
    local said = type(sum) == 'table' and sum.err or ''
    if sum and said == '' then new = new or string.format('%d', sum) == counters[i + 1]
    elseif said ~= '' and not string.find(said, 'integer', 1, true) and not string.find(said, 'overflow', 1, true)
      and not string.find(said, 'WRONGTYPE', 1, true) then return said end -- of the first one
  end
  if new then redis.pcall('EXPIRE', stats, ttl) end
end
