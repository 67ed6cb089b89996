-- renew: a consumer renews its leases and counts as alive.
-- KEYS: for each tier: stream alive leases
-- ARGV: group consumer lease_ms, then for each tier: in_full(1: the lease and the keys' TTL too) count id...
-- Returns the server's time in ms, then for each tier the ids that this consumer holds no longer.
local now, ttl = clock(), math.max(86400, math.ceil(ARGV[3] / 1000))
local reply, at = {string.format('%.0f', now)}, 4
for k = 1, #KEYS, 3 do
  local in_full, kept, lost = ARGV[at] == '1', {}, {}
  for i = at + 2, at + 1 + ARGV[at + 1] do
    local to = holds(KEYS[k], ARGV[1], ARGV[2], ARGV[i]) and kept or lost
    to[#to + 1] = ARGV[i]
  end
  at = at + ARGV[at + 1] + 2
  for from = 1, #kept, 1000 do -- Lua's unpack allows some thousands
    local some = {unpack(kept, from, math.min(from + 999, #kept))}
    some[#some + 1] = 'JUSTID'
    call('XCLAIM', KEYS[k], ARGV[1], ARGV[2], 0, unpack(some))
  end
  reply[#reply + 1] = lost
  local replies = {redis.pcall('ZADD', KEYS[k + 1], string.format('%.0f', now + ARGV[3]), ARGV[2])}
  if in_full or replies[1] == 1 then -- 1: the member is new, and the key may be
    replies[2] = redis.pcall('HSET', KEYS[k + 2], ARGV[2], ARGV[3])
    replies[3] = redis.pcall('EXPIRE', KEYS[k + 1], ttl)
    replies[4] = redis.pcall('EXPIRE', KEYS[k + 2], ttl)
  end
  for _, said in ipairs(replies) do
    -- A server out of memory may refuse these: the leases are renewed all the same. Other errors are raised.
    if type(said) == 'table' and said.err and not string.find(said.err, 'OOM', 1, true) then return said end
  end
end
return reply
