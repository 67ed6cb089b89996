-- rate_drain: nothing starts from this bucket for a time, and then it is empty.
-- KEYS: bucket
-- ARGV: interval_ms capacity after_ms
-- Returns {now, due}: the slot (ms) of who asked for it.
call('PEXPIRE', KEYS[1], 60000)
local now, interval = clock(), tonumber(ARGV[1])
local flat = call('HMGET', KEYS[1], 'tail', 'gate', 'again', 'shut')
local tail, gate = tonumber(flat[1] or 0), tonumber(flat[2] or 0)
local again, shut = tonumber(flat[3] or 0), tonumber(flat[4] or 0)
local opens = now + ARGV[3]
shut = math.max(shut, opens)
gate = math.max(gate, shut + (ARGV[2] - 1) * interval)
local due = math.max(again, shut)
again = due + interval
local function text(value) return string.format('%.17g', value) end
call('HSET', KEYS[1], 'tail', text(tail), 'gate', text(gate), 'again', text(again), 'shut', text(shut))
call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(tail, gate, again, shut) - now + 1000))
return {now, text(due)}
