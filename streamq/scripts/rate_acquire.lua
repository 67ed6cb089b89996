-- rate_acquire: may a task start now, by a token bucket? The rules are those of Bucket in middleware/token_bucket.py.
-- KEYS: bucket
-- ARGV: interval_ms burst capacity due_ms('' if it has no reservation) missed(1 if it has missed one)
-- Returns {now, due, missed}: due is '' if it may start, else the time (ms) to come back at.
local now, interval = clock(), tonumber(ARGV[1])
if ARGV[4] ~= '' and tonumber(ARGV[4]) > now + 2 then return {now, ARGV[4], ARGV[5]} end
call('PEXPIRE', KEYS[1], 60000) -- the first write needs no memory: a full server keeps the limit, too
local stored = call('HMGET', KEYS[1], 'tail', 'gate', 'again', 'shut')
local reserved_until, full_at = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
local late_reserved_until, drained_until = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
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
local function text(value) return string.format('%.17g', value) end
call('HSET', KEYS[1], 'tail', text(reserved_until), 'gate', text(full_at), 'again', text(late_reserved_until),
  'shut', text(drained_until))
local last = math.max(reserved_until, full_at, late_reserved_until, drained_until)
call('PEXPIRE', KEYS[1], string.format('%.0f', last - now + 1000))
return {now, due and text(due) or '', missed}
