-- rate_drain: let nothing start from this bucket for a time; then it is empty.
-- KEYS: bucket
-- ARGV: interval_ms capacity after_ms
-- Returns {now, due}: the reservation (ms) of the task that asked for it.
call('PEXPIRE', KEYS[1], 60000)
local now, interval = clock(), tonumber(ARGV[1])
local stored = call('HMGET', KEYS[1], 'tail', 'gate', 'again', 'shut')
local reserved_until, full_at = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
local late_reserved_until, drained_until = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
drained_until = math.max(drained_until, now + ARGV[3])
full_at = math.max(full_at, drained_until + (ARGV[2] - 1) * interval)
local due = math.max(late_reserved_until, drained_until)
late_reserved_until = due + interval
local function text(value) return string.format('%.17g', value) end
call('HSET', KEYS[1], 'tail', text(reserved_until), 'gate', text(full_at), 'again', text(late_reserved_until),
  'shut', text(drained_until))
local last = math.max(reserved_until, full_at, late_reserved_until, drained_until)
call('PEXPIRE', KEYS[1], string.format('%.0f', last - now + 1000))
return {now, text(due)}
