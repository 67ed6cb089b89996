-- Prepended to the steps of a concurrency limit, after _permits.
-- Note in `limits` when this name is due for a sweep: when the first permit or reservation is over.
local function schedule_sweep(name)
  local first = math.huge
  for k = 1, 3 do
    local found = call('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')
    if found[2] then first = math.min(first, k == 3 and clock() + 1000 or tonumber(found[2])) end
    call('PEXPIRE', KEYS[k], 86400000)
  end
  if first == math.huge then call('ZREM', KEYS[4], name) return end
  call('ZADD', KEYS[4], whole(first), name)
  call('PEXPIRE', KEYS[4], 86400000)
end
