-- circuit_postpone: give a call that circuit_enter did not let through a sequence number, and a time to come back.
-- KEYS: circuit
-- ARGV: interval_ms keep_ms number now base
-- `number` is -1 for a call that has none yet.
-- Returns {number, incarnation, due}: which life of the circuit issued the number, and when to come back (ms).
local interval, now, base = tonumber(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local fields = {'state', 'issued', 'head', 'origin', 'last_due', 'born'}
local state, issued, head, origin, last_due, born = unpack(call('HMGET', KEYS[1], unpack(fields)))
issued, head, origin, last_due = time_in(issued, now), time_in(head, now), time_in(origin, now), time_in(last_due, now)
local number, due = tonumber(ARGV[3]), nil
if number < 0 then
  if now > last_due then head = issued end
  number, issued = issued, issued + 1
  if state == 'closed' then
    origin = math.max(origin, base - number * interval)
    due = origin + number * interval
  end
end
due = due or base + math.abs(number - head) * interval
last_due, born = math.max(last_due, due), born or string.format('b%.0f', now)
local changed = {'born', born}
for field, value in pairs({issued = issued, head = head, origin = origin, last_due = last_due}) do
  changed[#changed + 1], changed[#changed + 2] = field, string.format('%.17g', value)
end
ask(KEYS[1], 'PEXPIRE')
call('HSET', KEYS[1], unpack(changed))
call('PEXPIRE', KEYS[1], whole(math.max(last_due - now, 0) + ARGV[2]))
return {number, born, string.format('%.17g', due)}
