-- Prepended to scripts that call count_dropped: how many dead letters a bound has removed.
-- Somebody else's value (no number, below 0, beyond what can have been dropped) counts as missing: the count begins anew.
-- Returns the error if the server refuses to count.
local function count_dropped(totals, dropped, ttl)
  local sum = redis.pcall('HINCRBY', totals, 'dead_dropped', dropped)
  local why = type(sum) == 'table' and sum.err or ''
  if string.find(why, 'integer', 1, true) or string.find(why, 'overflow', 1, true)
    or type(sum) == 'number' and (sum < tonumber(dropped) or sum >= 1e15) then
    redis.pcall('HSET', totals, 'dead_dropped', dropped)
  elseif why ~= '' then return sum end
  redis.pcall('EXPIRE', totals, ttl)
end
