-- permit_check: a waiter has been delayed. Wake it if a permit is reserved for it. If it was passed over, it waits again.
-- KEYS: permits called line limits delayed...
-- ARGV: name channel waiter since
-- Returns 1, or 0 if it is not delayed.
local waiter = ARGV[3]
local delayed_in, names = place_of(waiter)
if not delayed_in then return 0 end
if not (call('ZSCORE', delayed_in, names[1]) or call('ZSCORE', delayed_in, names[2])) then return 0 end
call('PEXPIRE', KEYS[1], 86400000) -- a first write that needs no memory
if call('ZSCORE', KEYS[2], waiter) then
  wake(waiter, clock())
  if woke then publish(ARGV[2], 'due') end
elseif not call('ZSCORE', KEYS[3], waiter) then
  call('ZADD', KEYS[3], ARGV[4], waiter) -- it was on its way, and taken for gone
end
schedule_sweep(ARGV[1])
return 1
