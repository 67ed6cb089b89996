-- circuit_enter: may a call go through this circuit now? The rules are those of middleware/circuit_state_machine.py.
-- KEYS: circuit circuits
-- ARGV: name reset_ms half_open_max interval_ms keep_ms incarnation number
-- Returns {now, state, period, failures, since, error_type, error, failed_at, number, began (of a probe), base, due}.
-- A due time or a base (ms) postpones the call. A base ignores the numbers before its own: circuit_postpone adds them.
local reset, interval, number, began, base, due = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[7]), '', nil, nil
local function admit(next_field, gap) put(next_field, math.max(num(next_field), now) + gap) end
if number >= 0 and (ARGV[6] ~= circuit.born or number >= num('issued')) then number = -1 end
if circuit.state == 'open' and now >= num('since') + reset then
  put('state', 'half_open') put('since', now) put('period', num('period') + 1) put('probes', '')
end
if circuit.state == 'open' then
  base = num('since') + reset
elseif circuit.state == 'half_open' then
  local probes = {}
  for at in string.gmatch(circuit.probes, '%d+') do
    if tonumber(at) <= now and now < at + reset then probes[#probes + 1] = at end
  end
  if #probes < tonumber(ARGV[3]) then
    began = whole(now)
    probes[#probes + 1] = began
    if number == num('head') then put('head', number + 1) end
  else base = now + math.max(now - probes[1], interval) end
  put('probes', table.concat(probes, ' '))
elseif number >= num('head') then
  local earliest = num('gate') - 10 * interval
  if num('origin') + number * interval <= now and now < earliest then put('origin', earliest - number * interval) end
  if num('origin') + (number - 0.1) * interval > now then due = num('origin') + number * interval
  else admit('gate', interval) put('head', number + 1) end
elseif number >= 0 then
  if num('late') - 10 * interval > now then base = num('late') - 10 * interval else admit('late', interval) end
elseif now < num('closed') + reset then
  local gap = interval / 2 ^ math.floor((now - num('closed')) * 10 / reset)
  if num('ramp') > now + gap then base = now + interval else admit('ramp', gap) end
end
if due then put('last_due', math.max(num('last_due'), due)) end
local ttl = save_circuit(ARGV[5])
if began ~= '' then add_to_index(KEYS[2], ARGV[1], ttl) end
return {now, circuit.state, num('period'), num('failures'), text(num('since')), circuit.error_type or '',
  circuit.error or '', circuit.failed_at or '', number, began, text(base), text(due)}
