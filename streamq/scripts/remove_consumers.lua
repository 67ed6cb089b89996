-- remove_consumers: a consumer, or all dead ones, are removed where they hold nothing.
-- KEYS: for each tier: stream alive leases
-- ARGV: group released limit consumer('': all dead ones) forgotten_ms
-- Returns nothing.
local now = string.format('%.0f', clock())

-- Consumers that are not in `alive`: the renewal was refused, or the server lost its data.
local function strangers(stream, k, names)
  for _, flat in ipairs(call('XINFO', 'CONSUMERS', stream, ARGV[1])) do
    local one = {}
    for i = 1, #flat, 2 do one[flat[i]] = flat[i + 1] end
    if one.idle > tonumber(ARGV[5]) and not call('ZSCORE', KEYS[k + 1], one.name) then names[#names + 1] = one.name end
  end
end

for k = 1, #KEYS, 3 do
  local names = {ARGV[4], ARGV[2]}
  if ARGV[4] == '' then
    names = call('ZRANGEBYSCORE', KEYS[k + 1], '-inf', now, 'LIMIT', 0, ARGV[3])
    strangers(KEYS[k], k, names)
  end
  for _, name in ipairs(names) do
    if #call('XPENDING', KEYS[k], ARGV[1], '-', '+', 1, name) == 0 then
      call('XGROUP', 'DELCONSUMER', KEYS[k], ARGV[1], name)
      call('ZREM', KEYS[k + 1], name)
      call('HDEL', KEYS[k + 2], name)
    end
  end
end
