-- enqueue: a task is accepted once per guard key, now or delayed.
-- KEYS: stream delayed messages guard...
-- ARGV: id delay_ms due_ms(0: by delay, -1: now) channel message old_result old_progress('': the id is new), a ttl_ms for each guard, field value...
-- Returns {accepted, id of the task that holds the guard or was made, entry id or '', now if it is delayed}.
local id, due = ARGV[1], tonumber(ARGV[3])
local guards, ttls = #KEYS - 3, {}
for g = 1, guards do
  local winner = call('GET', KEYS[3 + g])
  if winner then return {0, winner, ''} end
  ttls[g] = whole(ARGV[7 + g], 1)
end
if call('HEXISTS', KEYS[3], id) == 1 then return {0, id, ''} end
local now, entry = clock(), ''
if due == 0 then due = now + ARGV[2] end
for g = 1, guards do ask(KEYS[3 + g], 'SET') end
if due > 0 then -- the guards come last: if this is refused, no task holds them
  ask(KEYS[3], 'HSET')
  delay(KEYS[2], KEYS[3], ARGV[4], due, id, ARGV[5])
else
  entry = call('XADD', KEYS[1], '*', unpack(ARGV, 8 + guards))
end
for g = 1, guards do call('SET', KEYS[3 + g], id, 'PX', ttls[g]) end
delete_old(6, 2)
return {1, id, entry, due > 0 and whole(now) or nil}
