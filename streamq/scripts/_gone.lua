-- Prepended to remove_consumers, after _consumers.
-- Up to `limit` consumers that hold nothing and are dead: their time is over, or they have none (the renewal was
-- refused, or the server lost its data) and did nothing for `forgotten` ms.
local function gone(stream, group, alive, limit, forgotten)
  local now, known, names, idle, found = clock(), {}, {}, {}, {}
  for _, flat in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
    local one = {}
    for i = 1, #flat, 2 do one[flat[i]] = flat[i + 1] end
    known[one.name] = true
    if one.pending == 0 then names[#names + 1], idle[#idle + 1] = one.name, one.idle end
  end
  for k, ends in ipairs(of_all('ZMSCORE', alive, names)) do
    if ends and tonumber(ends) <= now or not ends and idle[k] > forgotten then found[#found + 1] = names[k] end
    if #found >= limit then return found end
  end
  for _, name in ipairs(redis.pcall('ZRANGEBYSCORE', alive, '-inf', whole(now), 'LIMIT', 0, PIECE)) do
    if #found < limit and not known[name] then found[#found + 1] = name end -- only its time is left
  end
  return found
end
