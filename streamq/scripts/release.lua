-- release: deliveries go to the consumer `released`, not settled; the next sweep of any consumer takes them.
-- KEYS: stream
-- ARGV: group consumer released idle_ms channel id...
-- Returns how many this consumer still held.
local mine = {}
for i = 6, #ARGV do
  if holds(KEYS[1], ARGV[1], ARGV[2], ARGV[i]) then mine[#mine + 1] = ARGV[i] end
end
for _, id in ipairs(mine) do
  call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, id, 'IDLE', ARGV[4], 'JUSTID')
end
if #mine > 0 then publish(ARGV[5], 'released') end
return #mine
