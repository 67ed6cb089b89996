-- Prepended to reclaim: which consumers hold entries, which of them live.
-- The consumers with pending entries, and until when (ms) each counts as alive: two commands for any number of them.
local function holders(stream, group, alive)
  local names = {}
  for k, pair in ipairs(call('XPENDING', stream, group)[4] or {}) do names[k] = pair[1] end
  return names, #names > 0 and call('ZMSCORE', alive, unpack(names)) or {}
end

-- The longest lease (ms) of any living consumer.
local function longest_lease(alive, leases, now)
  local names, most = call('ZRANGEBYSCORE', alive, string.format('%.0f', now), '+inf'), 0
  for _, lease in ipairs(#names > 0 and call('HMGET', leases, unpack(names)) or {}) do
    most = math.max(most, tonumber(lease or 0))
  end
  return most
end

-- Acknowledge entries that are pending for a consumer but were deleted from the stream.
local function ack_deleted(stream, group, consumer)
  for _, row in ipairs(call('XPENDING', stream, group, '-', '+', 1000, consumer)) do
    if #call('XRANGE', stream, row[1], row[1]) == 0 then call('XACK', stream, group, row[1]) end
  end
end
