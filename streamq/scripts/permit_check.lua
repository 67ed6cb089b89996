-- permit_check: waiters were told to wait and should be delayed by now; wake those that have a reserved permit.
-- KEYS: permits called line limits delayed...
-- ARGV: name max reserve_ms channel [waiter since]...
-- Returns {0, waiter... that need no further check}.
local now, settled = clock(), {}
for i = 5, #ARGV, 2 do
  local waiter, since = ARGV[i], ARGV[i + 1]
  local delayed, listed = nil, call('ZSCORE', KEYS[3], waiter)
  if call('ZSCORE', KEYS[2], waiter) then
    delayed = wake(waiter, now)
  elseif not listed and tonumber(since) > (now - 500) * 1000 then
    delayed = true -- it has come, and has its permit
  else
    local delayed_in, names = place_of(waiter)
    delayed = delayed_in and (call('ZSCORE', delayed_in, names[1]) or call('ZSCORE', delayed_in, names[2]))
    if delayed and not listed then call('ZADD', KEYS[3], since, waiter) end -- taken for gone while it was on its way
  end
  if delayed then settled[#settled + 1] = waiter end
end
reserve_permits(tonumber(ARGV[2]), ARGV[3], ARGV[4])
schedule_sweep(ARGV[1])
return {0, unpack(settled)}
