-- permit_look: those who were told to wait are delayed by now, or will be: one that was called meanwhile is woken.
-- KEYS: permits called line limits delayed...
-- ARGV: name max grant_ms channel [place since]...
-- Returns {0, place... of those that need no further look}.
local now, settled = clock(), {}
for i = 5, #ARGV, 2 do
  local place, since = ARGV[i], ARGV[i + 1]
  local entry, _, key, member = string.match(place, '^(%S+) (%d+) (%S+) (.*)$')
  local there, waits = nil, call('ZSCORE', KEYS[3], place)
  if call('ZSCORE', KEYS[2], place) then
    there = wake(place, now)
  elseif not waits and tonumber(since) > (now - 500) * 1000 then
    there = true -- it has come, and has its permit
  else
    for k = 5, #KEYS do
      if KEYS[k] == key then
        there = call('ZSCORE', KEYS[k], member .. ':' .. entry) or call('ZSCORE', KEYS[k], member)
      end
    end
    if there and not waits then call('ZADD', KEYS[3], since, place) end -- taken for gone while it was on its way
  end
  if there then settled[#settled + 1] = place end
end
hand_out(tonumber(ARGV[2]), ARGV[3], ARGV[4])
note(ARGV[1])
return {0, unpack(settled)}
