-- Prepended to every script. Needs no KEYS; every function is local.
if redis.replicate_commands then redis.replicate_commands() end -- Redis before 7 needs it for TIME
local call = redis.call

local function clock() -- milliseconds
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function holds(stream, group, consumer, id)
  return #call('XPENDING', stream, group, id, id, 1, consumer) > 0
end

local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Is this entry still to be delivered to, or acknowledged by, one of these groups?
local function wanted(stream, groups, id)
  local ms, seq = split(id)
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    local last_ms, last_seq = split(group['last-delivered-id'])
    if ms > last_ms or (ms == last_ms and seq > last_seq) then return true end
    if #call('XPENDING', stream, group.name, id, id, 1) > 0 then return true end
  end
  return false
end

-- Settled entries leave the stream, once every group has acknowledged them.
local function leave(stream, ids)
  local groups = call('XINFO', 'GROUPS', stream)
  if #groups > 1 then
    local gone = {}
    for _, id in ipairs(ids) do
      if not wanted(stream, groups, id) then gone[#gone + 1] = id end
    end
    ids = gone
  end
  if #ids > 0 then call('XDEL', stream, unpack(ids)) end
end

-- Is an entry in the stream, and in nobody's hands? 'unknown', 'queued' or 'running'.
local function whereabouts(stream, entry)
  if #call('XRANGE', stream, entry, entry) == 0 then return 'unknown' end
  for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if #call('XPENDING', stream, group.name, entry, entry, 1) > 0 then return 'running' end
  end
  return 'queued'
end

-- Put a message among the delayed, and wake the schedulers if it is due before all others.
local function delay(delayed, messages, channel, due, id, message)
  call('ZADD', delayed, string.format('%.0f', due), id)
  call('HSET', messages, id, message)
  if call('ZRANGE', delayed, 0, 0)[1] == id then call('PUBLISH', channel, 'due') end
end

local function deaths(crashes)
  return select(2, string.gsub(crashes, '%S+', ''))
end

-- A worker died holding this: note its name. Returns all names, and 1 if it ran nothing else, which
-- convicts; after `max` deaths that verdict stands until it is carried out.
local function blame(evidence, id, crashes, owner, ttl, max)
  crashes = crashes .. (crashes == '' and '' or ' ') .. owner
  local mark = call('HGET', evidence, id .. ':alone')
  local convicted = mark == owner or mark == '!'
  call('HSET', evidence, id, crashes)
  if convicted and deaths(crashes) >= max then call('HSET', evidence, id .. ':alone', '!') end
  call('PEXPIRE', evidence, ttl)
  return crashes, convicted and 1 or 0
end

-- What is settled needs no evidence any more; there is some only while somebody has died.
local function forgive(evidence, settled)
  if call('EXISTS', unpack(evidence)) == 0 then return end
  for k, ids in ipairs(settled) do
    for _, id in ipairs(ids) do call('HDEL', evidence[k], id, id .. ':alone') end
  end
end

-- Who holds anything, and until when (ms) each is known to live; one command, however many they are.
local function holders(stream, group, alive)
  local names = {}
  for k, pair in ipairs(call('XPENDING', stream, group)[4] or {}) do names[k] = pair[1] end
  return names, #names > 0 and call('ZMSCORE', alive, unpack(names)) or {}
end

-- The longest lease (ms) of the consumers that live.
local function longest(alive, leases, now)
  local names, most = call('ZRANGEBYSCORE', alive, string.format('%.0f', now), '+inf'), 0
  for _, lease in ipairs(#names > 0 and call('HMGET', leases, unpack(names)) or {}) do
    most = math.max(most, tonumber(lease or 0))
  end
  return most
end

-- Acknowledge what is pending for a consumer and is not in the stream any more.
local function forget(stream, group, consumer)
  for _, row in ipairs(call('XPENDING', stream, group, '-', '+', 1000, consumer)) do
    if #call('XRANGE', stream, row[1], row[1]) == 0 then call('XACK', stream, group, row[1]) end
  end
end
