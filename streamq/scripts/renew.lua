-- renew: a consumer renews its leases and counts as alive.
-- KEYS: for each tier: stream alive leases crashes
-- ARGV: group consumer lease_ms, then for each tier: in_full(1: the lease and the keys' TTL too) count id...
-- Returns the server's time in ms, then for each tier the ids that this consumer holds no longer, then for each those to be cancelled.
-- What is refused keeps nothing else from being renewed; its error is returned in the end.
local now, ttl = clock(), math.max(86400, math.ceil(ARGV[3] / 1000))
local reply, cancelled, at, refused = {whole(now)}, {}, 4, nil
for k = 1, #KEYS, 4 do
  local in_full, kept, lost = ARGV[at] == '1', {}, {}
  for i = at + 2, math.min(at + 1 + ARGV[at + 1], #ARGV) do
    local fine, to = pcall(function()
      return (holds(KEYS[k], ARGV[1], ARGV[2], ARGV[i]) or dropped_entry(KEYS[k], ARGV[1], ARGV[i])) and kept or lost
    end)
    if fine then to[#to + 1] = ARGV[i] else refused = refused or to end
  end
  at = at + ARGV[at + 1] + 2
  local replies = {}
  for from = 1, #kept, 1000 do -- Lua's unpack allows some thousands
    local some = {unpack(kept, from, math.min(from + 999, #kept))}
    some[#some + 1], some[#some + 2] = 'FORCE', 'JUSTID' -- FORCE for those that were dropped
    replies[#replies + 1] = redis.pcall('XCLAIM', KEYS[k], ARGV[1], ARGV[2], 0, unpack(some))
  end
  reply[#reply + 1], cancelled[#cancelled + 1] = lost, cancelled_among(KEYS[k + 3], kept)
  local added = redis.pcall('ZADD', KEYS[k + 1], whole(now + ARGV[3]), ARGV[2])
  replies[#replies + 1] = added
  if added == 1 or (in_full and added == 0) then -- 1: the member is new, and the key may be
    local written = redis.pcall('HSET', KEYS[k + 2], ARGV[2], ARGV[3])
    replies[#replies + 1], replies[#replies + 2] = written, redis.pcall('EXPIRE', KEYS[k + 1], ttl)
    if type(written) ~= 'table' then replies[#replies + 1] = redis.pcall('EXPIRE', KEYS[k + 2], ttl) end
  end
  for _, said in ipairs(replies) do
    -- A server out of memory, or somebody else's key, may refuse these: the leases are renewed all the same.
    local why = type(said) == 'table' and said.err
    if why and not string.find(why, 'OOM', 1, true) and not string.find(why, 'WRONGTYPE', 1, true) then refused = said end
  end
end
if refused then return type(refused) == 'table' and refused or redis.error_reply(refused) end
for _, ids in ipairs(cancelled) do reply[#reply + 1] = ids end
return reply
