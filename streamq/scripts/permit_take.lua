-- permit_take: may a run start under this limit? If not it is given a place in the line.
-- KEYS: permits called line limits delayed...
-- ARGV: name max lease_ms grant_ms channel run place since(when it was given its place, us; '' if it is new)
-- Returns {1 or 0, since, rank in the line, foreign place...}: places whose delayed sets the caller is to wake.
local max, run, place, since = tonumber(ARGV[2]), ARGV[6], ARGV[7], ARGV[8]
call('PEXPIRE', KEYS[1], 86400000) -- a first write that needs no memory: a full server keeps the limit, too
local granted = since ~= '' and call('ZREM', KEYS[2], place) == 1
if not granted then
  local waited = since ~= '' and call('ZSCORE', KEYS[3], place)
  hand_out(max, ARGV[4], ARGV[5])
  granted = since ~= '' and call('ZREM', KEYS[2], place) == 1
  local called = call('ZCARD', KEYS[2])
  if granted then -- called just now
  elseif call('ZCARD', KEYS[1]) + called < max and call('ZCARD', KEYS[3]) == 0 then
    granted = true
  elseif since ~= '' and not waited and called > 0 then
    -- It was called before and is late: it takes the permit kept for one that is not here yet, who may do likewise.
    call('ZREM', KEYS[2], call('ZRANGE', KEYS[2], -1, -1)[1])
    granted = true
  end
end
local rank = 0
if granted then
  call('ZADD', KEYS[1], string.format('%.0f', clock() + ARGV[3]), run)
else
  local time = call('TIME')
  if since == '' then since = string.format('%.0f', time[1] * 1000000 + time[2]) end
  call('ZADD', KEYS[3], 'NX', since, place)
  rank = call('ZRANK', KEYS[3], place)
end
note(ARGV[1])
return {granted and 1 or 0, since, rank, unpack(foreign)}
