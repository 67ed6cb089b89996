-- rate_drain: let nothing start from this bucket for a time; then it is empty.
-- KEYS: bucket
-- ARGV: interval_ms capacity after_ms
-- Returns {now, due}: the reservation (ms) of the task that asked for it.
local now, interval = clock(), tonumber(ARGV[1])
local reserved_until, full_at, late_reserved_until, drained_until = read_bucket(now)
drained_until = math.max(drained_until, now + ARGV[3])
full_at = math.max(full_at, drained_until + (ARGV[2] - 1) * interval)
local due = math.max(late_reserved_until, drained_until)
late_reserved_until = due + interval
write_bucket(now, reserved_until, full_at, late_reserved_until, drained_until)
return {now, text(due)}
