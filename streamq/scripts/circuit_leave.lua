-- circuit_leave: count how calls ended that this circuit let through. The rules: middleware/circuit_state_machine.py.
-- KEYS: circuit circuits
-- ARGV: name threshold failure_rate window_ms min_calls keep_ms max_indexed period began succeeded failed error_type error interval_ms
-- `succeeded` calls succeeded, then `failed` (0 or 1) failed; `began` is the time of a probe ('' for other calls).
-- Returns {now, state, period, failures, since, error_type, error, failed_at}.
local rate, succeeded, failed, before = tonumber(ARGV[3]), tonumber(ARGV[10]), tonumber(ARGV[11]), circuit.state
local tenth, calls, failures = math.floor(now * 10 / ARGV[4]), 0, 0
if num('period') == tonumber(ARGV[8]) then
  if ARGV[9] ~= '' then put('probes', (string.gsub(' ' .. circuit.probes, ' ' .. ARGV[9], '', 1))) end
  for slot = 0, rate > 0 and 9 or -1 do
    local at, total, bad = string.match(circuit['window' .. slot] or '', '(%d+):(%d+):(%d+)')
    if not at or tonumber(at) <= tenth - 10 or tonumber(at) > tenth then total, bad = 0, 0 end
    if slot == tenth % 10 then
      total, bad = total + succeeded + failed, bad + failed
      put('window' .. slot, string.format('%.0f:%.0f:%.0f', tenth, total, bad))
    end
    calls, failures = calls + total, failures + bad
  end
  if succeeded > 0 and (num('failures') > 0 or before == 'half_open') then put('failures', 0) end
  if succeeded > 0 and before == 'half_open' then
    put('state', 'closed') put('closed', now) put('origin', now - num('head') * ARGV[14])
  end
  if failed > 0 then
    put('failures', num('failures') + 1) put('error_type', ARGV[12]) put('error', ARGV[13]) put('failed_at', now)
    local over_rate = rate > 0 and calls >= tonumber(ARGV[5]) and failures >= rate * calls
    if before == 'half_open' or num('failures') >= tonumber(ARGV[2]) or over_rate then put('state', 'open') end
  end
end
if circuit.state ~= before then
  put('since', now) put('period', num('period') + 1) put('probes', '')
  for slot = 0, 9 do put('window' .. slot, '') end
end
local ttl = save_circuit(ARGV[6])
if circuit.state ~= before then
  if circuit.state == 'closed' then drop_from_index(KEYS[2], ARGV[1]) else add_to_index(KEYS[2], ARGV[1], ttl) end
  trim_index(KEYS[2], ARGV[7])
end
return {now, circuit.state, num('period'), num('failures'), whole(num('since')),
  circuit.error_type or '', circuit.error or '', circuit.failed_at or ''}
