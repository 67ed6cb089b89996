-- tick: the due ticks of a schedule are sent, once in the fleet, and its next tick is set.
-- KEYS: schedules ticks ticked stream [guard]
-- ARGV: name revision expected_ms next_ms last_ms guard_ttl_ms, then id headers expires sig for each tick
-- Returns {1 if this call did it, its next tick or -1 if the schedule is gone or changed, the server's time in ms}.
local name, now = ARGV[1], clock()
local raw, at = call('HGET', KEYS[1], name), call('ZSCORE', KEYS[2], name)
local fine, wanted = pcall(cjson.decode, raw or '')
if not at or not fine or type(wanted) ~= 'table' or (wanted.revision or '') ~= ARGV[2] then return {0, -1, now} end
at = math.max(0, math.min(math.floor(at), 253402300799000)) -- a score written by hand may be any number
if at ~= tonumber(ARGV[3]) or now < at then return {0, at, now} end
if not sound(wanted.fields) then return {0, -1, now} end

call('HLEN', KEYS[3]) -- this and the next lines: what would be refused is refused before any change
ask(KEYS[2], 'ZADD')
ask(KEYS[3], 'HSET')
if KEYS[5] then ask(KEYS[5], 'SET') end
check_stream(KEYS[4])
local last
for t = 7, #ARGV, 4 do
  if not KEYS[5] or not call('GET', KEYS[5]) then
    local fields = {unpack(wanted.fields)}
    for f, name_of in ipairs({'id', 'headers', 'expires', 'sig'}) do
      if ARGV[t + f - 1] ~= '' then
        fields[#fields + 1] = name_of
        fields[#fields + 1] = ARGV[t + f - 1]
      end
    end
    call('XADD', KEYS[4], '*', unpack(fields))
    if KEYS[5] then call('SET', KEYS[5], ARGV[t], 'PX', whole(ARGV[6], 1)) end
    last = true
  end
end
call('ZADD', KEYS[2], ARGV[4], name)
if last then call('HSET', KEYS[3], name, ARGV[5]) end
return {1, tonumber(ARGV[4]), now}
