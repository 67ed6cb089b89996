-- renew: this consumer is alive and keeps what it holds.
-- KEYS: for each tier: stream alive leases
-- ARGV: group consumer lease_ms, then for each tier: count id...
-- Returns the server's time in ms, then for each tier the ids that are not held any more.
local now = clock()
local reply, at = {string.format('%.0f', now)}, 4
for k = 1, #KEYS, 3 do
  local kept, lost = {}, {}
  for i = at + 1, at + ARGV[at] do
    local to = holds(KEYS[k], ARGV[1], ARGV[2], ARGV[i]) and kept or lost
    to[#to + 1] = ARGV[i]
  end
  at = at + ARGV[at] + 1
  for from = 1, #kept, 1000 do -- unpack allows some thousands
    local some = {unpack(kept, from, math.min(from + 999, #kept))}
    some[#some + 1] = 'JUSTID'
    call('XCLAIM', KEYS[k], ARGV[1], ARGV[2], 0, unpack(some))
  end
  reply[#reply + 1] = lost
  for _, said in ipairs({
    redis.pcall('ZADD', KEYS[k + 1], string.format('%.0f', now + ARGV[3]), ARGV[2]),
    redis.pcall('HSET', KEYS[k + 2], ARGV[2], ARGV[3]),
    redis.pcall('EXPIRE', KEYS[k + 1], 86400),
    redis.pcall('EXPIRE', KEYS[k + 2], 86400),
  }) do
    -- A server out of memory may refuse it: leases matter more. What takes no writes at all has renewed nothing.
    if type(said) == 'table' and said.err and not string.find(said.err, 'OOM', 1, true) then return said end
  end
end
return reply
