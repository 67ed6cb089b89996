-- Prepended to scripts that call crash_count, record_crash or clear_crashes: the evidence of crashed workers, by entry.
local function crash_count(crashes)
  return select(2, string.gsub(crashes, '%S+', ''))
end

-- A worker died holding this entry: note its name. Returns all names, and 1 if it ran nothing else: then this
-- entry is proven to be the cause. After `max` deaths that mark stays, until the entry is dead-lettered.
local function record_crash(evidence, id, crashes, owner, ttl, max)
  crashes = crashes .. (crashes == '' and '' or ' ') .. owner
  local mark = call('HGET', evidence, id .. ':alone')
  local proven = mark == owner or mark == '!'
  call('HSET', evidence, id, crashes)
  if proven and crash_count(crashes) >= max then call('HSET', evidence, id .. ':alone', '!') end
  call('PEXPIRE', evidence, ttl)
  return crashes, proven and 1 or 0
end

-- Delete the evidence of settled entries. The key exists only if a worker has died.
local function clear_crashes(evidence, settled)
  if call('EXISTS', unpack(evidence)) == 0 then return end
  for k, ids in ipairs(settled) do
    for _, id in ipairs(ids) do call('HDEL', evidence[k], id, id .. ':alone') end
  end
end
