-- Prepended to scripts that call crash_count, record_crash or clear_crashes: the evidence of crashed workers, by entry.
-- A key of another type is read around: it has no evidence, and keeps none.
local function crash_count(crashes)
  return select(2, string.gsub(crashes, '%S+', ''))
end

local function evidence_of(evidence, field)
  local found = redis.pcall('HGET', evidence, field)
  return type(found) == 'string' and #found < 65536 and found or nil
end

-- A worker died holding this entry: note its name. Returns all names, and 1 if it ran nothing else: then this
-- entry is proven to be the cause. After `max` deaths that mark stays, until the entry is dead-lettered.
local function record_crash(evidence, id, crashes, owner, ttl, max)
  crashes = crashes .. (crashes == '' and '' or ' ') .. string.gsub(owner, '%s', '_')
  local mark = evidence_of(evidence, id .. ':alone')
  local proven = mark == owner or mark == '!'
  local kept = redis.pcall('HSET', evidence, id, crashes)
  if type(kept) ~= 'table' then
    if proven and crash_count(crashes) >= max then call('HSET', evidence, id .. ':alone', '!') end
    call('PEXPIRE', evidence, ttl)
  end
  return crashes, proven and 1 or 0
end

-- Only if a worker has died.
local function crashes_exist(evidence)
  return call('EXISTS', unpack(evidence)) > 0
end

-- Delete the evidence of settled entries. What may not be deleted ends by its TTL.
local function clear_crashes(evidence, settled)
  for k, ids in ipairs(settled) do
    for _, id in ipairs(ids) do redis.pcall('HDEL', evidence[k], id, id .. ':alone', id .. ':cancel') end
  end
end
