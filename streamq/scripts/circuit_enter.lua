-- circuit_enter: may a call go through this circuit now? The rules are those of middleware/circuit.py.
-- KEYS: circuit circuits
-- ARGV: name reset_ms half_open_max interval_ms keep_ms born number
-- Returns {now, state, period, failures, since, error_type, error, failed_at, number, began (probes), base, due}:
-- who is given a base or a due time (ms) may not; a base makes no allowance for its place, see circuit_hold.
local reset, interval = tonumber(ARGV[2]), tonumber(ARGV[4])
local function place(gate, gap) put(gate, math.max(n(gate), now) + gap) end
local number, began, base, due = tonumber(ARGV[7]), '', nil, nil
if number >= 0 and (ARGV[6] ~= c.born or number >= n('issued')) then number = -1 end
if c.state == 'open' and now >= n('since') + reset then
  put('state', 'half_open') put('since', now) put('period', n('period') + 1) put('probes', '')
end
if c.state == 'open' then
  base = n('since') + reset
elseif c.state == 'half_open' then
  local inside = {}
  for at in string.gmatch(c.probes, '%d+') do
    if now < at + reset then inside[#inside + 1] = at end
  end
  if #inside < tonumber(ARGV[3]) then
    began = string.format('%.0f', now)
    inside[#inside + 1] = began
    if number == n('head') then put('head', number + 1) end
  else base = now + math.max(now - inside[1], interval) end
  put('probes', table.concat(inside, ' '))
elseif number >= n('head') then
  local opens = n('gate') - 10 * interval
  if n('origin') + number * interval <= now and now < opens then put('origin', opens - number * interval) end
  if n('origin') + (number - 0.1) * interval > now then due = n('origin') + number * interval
  else place('gate', interval) put('head', number + 1) end
elseif number >= 0 then
  if n('late') - 10 * interval > now then base = n('late') - 10 * interval else place('late', interval) end
elseif now < n('closed') + reset then
  local gap = interval / 2 ^ math.floor((now - n('closed')) * 10 / reset)
  if n('ramp') > now + gap then base = now + interval else place('ramp', gap) end
end
if due then put('last_due', math.max(n('last_due'), due)) end
local ttl = kept_for(ARGV[5])
if began ~= '' then name_it(ARGV[1], ttl) end
local function text(value) return value and string.format('%.17g', value) or '' end
return {now, c.state, n('period'), n('failures'), text(n('since')), c.error_type or '', c.error or '', c.failed_at or '',
  number, began, text(base), text(due)}
