-- Prepended to scripts that delay a message.
-- Wake the promoters if this one is due before all others.
local function announce(delayed, channel, id)
  local first = redis.pcall('ZRANGE', delayed, 0, 0)
  if first.err or first[1] == id then publish(channel, 'due') end
end

-- Add a message to the delayed set. Both keys have been looked at, and HSET asked for.
local function delay(delayed, messages, channel, due, id, message)
  call('ZADD', delayed, whole(due), id)
  call('HSET', messages, id, message)
  announce(delayed, channel, id)
end
