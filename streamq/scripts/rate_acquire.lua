-- rate_acquire: may a task start now, by a token bucket? The rules are those of Bucket in middleware/token_bucket.py.
-- KEYS: bucket
-- ARGV: interval_ms burst capacity due_ms('' if it has no reservation) missed(1 if it has missed one)
-- Returns {now, due, missed}: due is '' if it may start, else the time (ms) to come back at.
local now, interval = clock(), tonumber(ARGV[1])
if ARGV[4] ~= '' and tonumber(ARGV[4]) > now + 2 then return {now, ARGV[4], ARGV[5]} end
local reserved_until, full_at, late_reserved_until, drained_until = read_bucket(now)
local next_token = math.max(full_at - (ARGV[3] - 1) * interval, drained_until)
local due, missed = nil, ARGV[5]
if ARGV[4] == '' then
  local earliest = math.max(reserved_until - (ARGV[2] - 1) * interval, late_reserved_until, next_token)
  missed = '0'
  if earliest > now then due = earliest end
  reserved_until = math.max(reserved_until, due or now) + interval
elseif next_token > now + 2 or (missed ~= '1' and late_reserved_until > now + 2) then
  due, missed = math.max(late_reserved_until, next_token, now), '1'
  late_reserved_until = due + interval
end
if not due then full_at = math.max(full_at, now) + interval end
write_bucket(now, reserved_until, full_at, late_reserved_until, drained_until)
return {now, due and text(due) or '', missed}
