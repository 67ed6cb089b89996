-- remove_consumers: a consumer, or dead ones, are removed where they hold nothing.
-- KEYS: for each tier: stream alive leases
-- ARGV: group released limit consumer('': dead ones, at most `limit` of each tier) forgotten_ms
-- Returns the largest number that was removed from a tier: if it is `limit` there may be more.
local most = 0
for k = 1, #KEYS, 3 do
  local stream, alive = KEYS[k], KEYS[k + 1]
  local names = {ARGV[4], ARGV[2]}
  ask(stream, 'XGROUP')
  ask(alive, 'ZREM', 'ZMSCORE', 'ZRANGEBYSCORE')
  ask(KEYS[k + 2], 'HDEL')
  if ARGV[4] == '' then names = gone(stream, ARGV[1], alive, tonumber(ARGV[3]), tonumber(ARGV[5])) end
  for _, name in ipairs(names) do
    if #call('XPENDING', stream, ARGV[1], '-', '+', 1, name) == 0 then
      call('XGROUP', 'DELCONSUMER', stream, ARGV[1], name)
      redis.pcall('ZREM', KEYS[k + 1], name) -- a key of another type knows nobody
      redis.pcall('HDEL', KEYS[k + 2], name)
    end
  end
  most = math.max(most, #names)
end
return most
