-- rate: may a task start now, by a token bucket? The rules are those of Bucket in middleware/bucket.py.
-- KEYS: bucket
-- ARGV: interval_ms burst capacity due_ms('' if it has no slot) again(1 if it has missed one)
-- Returns {now, due, again}: due is '' if it may start, else the slot (ms) to come back at.
local now, interval = clock(), tonumber(ARGV[1])
if ARGV[4] ~= '' and tonumber(ARGV[4]) > now + 2 then return {now, ARGV[4], ARGV[5]} end
call('PEXPIRE', KEYS[1], 60000) -- the first write needs no memory: a full server keeps the limit, too
local flat = call('HMGET', KEYS[1], 'tail', 'gate', 'again', 'shut')
local tail, gate = tonumber(flat[1] or 0), tonumber(flat[2] or 0)
local again, shut = tonumber(flat[3] or 0), tonumber(flat[4] or 0)
local opens = math.max(gate - (ARGV[3] - 1) * interval, shut)
local due, late = nil, ARGV[5]
if ARGV[4] == '' then
  local earliest = math.max(tail - (ARGV[2] - 1) * interval, again)
  late = '0'
  if math.max(earliest, opens) > now then due = math.max(earliest, opens, now) end
  tail = math.max(tail, due or now) + interval
elseif opens > now + 2 or (late ~= '1' and again > now + 2) then
  due, late = math.max(again, opens, now), '1'
  again = due + interval
end
if not due then gate = math.max(gate, now) + interval end
local function text(value) return string.format('%.17g', value) end
call('HSET', KEYS[1], 'tail', text(tail), 'gate', text(gate), 'again', text(again), 'shut', text(shut))
call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(tail, gate, again, shut) - now + 1000))
return {now, due and text(due) or '', late}
