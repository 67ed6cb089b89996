-- circuit_leave: how calls ended that this circuit had let through. The rules are those of middleware/circuit.py.
-- KEYS: circuit circuits
-- ARGV: name threshold failure_rate window_ms min_calls keep_ms most_named period began well failed error_type error interval_ms
-- `well` calls succeeded, then `failed` (0 or 1) failed.
-- Returns {now, state, period, failures, since, error_type, error, failed_at}.
local rate, well, failed, was = tonumber(ARGV[3]), tonumber(ARGV[10]), tonumber(ARGV[11]), c.state
local tenth, calls, failures = math.floor(now * 10 / ARGV[4]), 0, 0
if n('period') == tonumber(ARGV[8]) then
  if ARGV[9] ~= '' then put('probes', (string.gsub(' ' .. c.probes, ' ' .. ARGV[9], '', 1))) end
  for slot = 0, rate > 0 and 9 or -1 do
    local at, of, bad = string.match(c['window' .. slot] or '', '(%d+):(%d+):(%d+)')
    if tonumber(at or -10) <= tenth - 10 then of, bad = 0, 0 end
    if slot == tenth % 10 then
      of, bad = of + well + failed, bad + failed
      put('window' .. slot, string.format('%.0f:%.0f:%.0f', tenth, of, bad))
    end
    calls, failures = calls + of, failures + bad
  end
  if well > 0 and (n('failures') > 0 or was == 'half_open') then put('failures', 0) end
  if well > 0 and was == 'half_open' then put('state', 'closed') put('closed', now) put('origin', now - n('head') * ARGV[14]) end
  if failed > 0 then
    put('failures', n('failures') + 1) put('error_type', ARGV[12]) put('error', ARGV[13]) put('failed_at', now)
    local much = rate > 0 and calls >= tonumber(ARGV[5]) and failures >= rate * calls
    if was == 'half_open' or n('failures') >= tonumber(ARGV[2]) or much then put('state', 'open') end
  end
end
if c.state ~= was then
  put('since', now) put('period', n('period') + 1) put('probes', '')
  for slot = 0, 9 do put('window' .. slot, '') end
end
local ttl = kept_for(ARGV[6])
if c.state ~= was then
  call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
  if c.state == 'closed' then call('ZREM', KEYS[2], ARGV[1]) else name_it(ARGV[1], ttl) end
  call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[7])
end
return {now, c.state, n('period'), n('failures'), string.format('%.0f', n('since')), c.error_type or '', c.error or '',
  c.failed_at or ''}
