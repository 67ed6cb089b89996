-- circuit_hold: a call that circuit_enter has not let through takes its place, with a number of its own.
-- KEYS: circuit
-- ARGV: interval_ms keep_ms number now base
-- Returns {number, born, due}: which life of the circuit gave the number, and when to come back (ms).
local interval, now, base = tonumber(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local names = {'state', 'issued', 'head', 'origin', 'last_due', 'born'}
local state, issued, head, origin, last_due, born = unpack(call('HMGET', KEYS[1], unpack(names)))
issued, head, origin, last_due = tonumber(issued or 0), tonumber(head or 0), tonumber(origin or 0), tonumber(last_due or 0)
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
local new = {issued = issued, head = head, origin = origin, last_due = last_due}
for field, value in pairs(new) do call('HSET', KEYS[1], field, string.format('%.17g', value)) end
call('HSET', KEYS[1], 'born', born)
call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(last_due - now, 0) + ARGV[2]))
return {number, born, string.format('%.17g', due)}
