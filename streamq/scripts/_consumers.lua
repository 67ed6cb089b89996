-- Prepended to reclaim and remove_consumers: which consumers hold entries, live, or are gone; any number of them.
-- Somebody else's values are read around: a lease that is no number is none, and so is a time in a key of another type.
local PIECE, LONGEST = 1000, 31 * 86400000 -- members of one command (Lua's unpack allows some thousands); ms of a lease

-- The replies of a command to many members, as one list.
local function of_all(name, key, members)
  local found = {}
  for from = 1, #members, PIECE do
    local last = math.min(from + PIECE - 1, #members)
    local some = redis.pcall(name, key, unpack(members, from, last))
    for k = from, last do found[k] = not some.err and some[k - from + 1] end
  end
  return found
end

-- The consumers with pending entries, and until when (ms) each counts as alive, or false.
local function holders(stream, group, alive)
  local names = {}
  for k, pair in ipairs(call('XPENDING', stream, group)[4] or {}) do names[k] = pair[1] end
  return names, of_all('ZMSCORE', alive, names)
end

-- The longest lease (ms) of any living consumer.
local function longest_lease(alive, leases, now)
  local names, most = redis.pcall('ZRANGEBYSCORE', alive, whole(now), '+inf'), 0
  for _, text in ipairs(of_all('HMGET', leases, names)) do
    local lease = tonumber(text or 0) or 0
    if lease > most and lease <= LONGEST then most = lease end
  end
  return most
end
