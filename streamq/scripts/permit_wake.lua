-- permit_wake: make a waiter due now, in a delayed set that was no key of the step that reserved its permit.
-- KEYS: delayed
-- ARGV: channel member member... (the names it may be delayed by)
-- Returns 1, or 0 if it is not delayed.
local now = clock()
for i = 2, #ARGV do
  local due = call('ZSCORE', KEYS[1], ARGV[i])
  if due then
    if tonumber(due) > now then
      call('ZADD', KEYS[1], whole(now), ARGV[i])
      publish(ARGV[1], 'due')
    end
    return 1
  end
end
return 0
