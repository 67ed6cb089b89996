-- register: a schedule is defined; if its cron expression and time zone are as before, it keeps its next tick.
-- KEYS: schedules ticks
-- ARGV: name definition next_ms channel
-- Returns {1, its next tick}, or {0, -1} if one of that name exists and only one of the two is declared by a task.
local name, is, due = ARGV[1], cjson.decode(ARGV[2]), ARGV[3]
local raw, at = call('HGET', KEYS[1], name), call('ZSCORE', KEYS[2], name)
local fine, was = pcall(cjson.decode, raw or '')
if raw and fine and type(was) == 'table' then
  if (was.declared == true) ~= (is.declared == true) then return {0, -1} end
  if at and was.cron == is.cron and was.tz == is.tz then due = whole(at) end
end
if raw ~= ARGV[2] or not at then
  ask(KEYS[2], 'ZADD')
  call('HSET', KEYS[1], name, ARGV[2])
  call('ZADD', KEYS[2], due, name)
  publish(ARGV[4], 'schedules')
end
return {1, tonumber(due)}
