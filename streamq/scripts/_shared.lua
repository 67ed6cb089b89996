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

-- The state of an entry: 'queued', 'running' (pending for a consumer), or 'unknown' (not in the stream).
local function entry_state(stream, entry)
  if #call('XRANGE', stream, entry, entry) == 0 then return 'unknown' end
  for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if #call('XPENDING', stream, group.name, entry, entry, 1) > 0 then return 'running' end
  end
  return 'queued'
end

-- Add a message to the delayed set, and wake the promoters if it is due before all others.
local function delay(delayed, messages, channel, due, id, message)
  call('ZADD', delayed, string.format('%.0f', due), id)
  call('HSET', messages, id, message)
  if call('ZRANGE', delayed, 0, 0)[1] == id then call('PUBLISH', channel, 'due') end
end
