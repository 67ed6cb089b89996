-- keep_last: accept a task, or put its arguments into the one that waits; behind one that runs, one waits for its end.
-- KEYS: dedup latest accepted, then for each tier: stream delayed messages
-- ARGV: id tier(from 1) delay_ms due_ms(0: by delay, -1: now) ttl_ms bound_ms accepted_ms(0: none) channel rest field value...
-- Returns {1 if it is a task of its own, id of the task that will run, its entry or '', now or 0, 1 if it replaced a message}.
if known then return {0, known, '', '0', 0} end
local place = holder and delayed(holder)
if not holder then
  local entry = put(own, due)
  hold_key(own, ARGV[5] + math.max(0, due - now), 'entry', entry, 'stream', KEYS[mine], 'since', whole(now), 'ttl', ARGV[5])
  return answer(1, own, entry, 0)
end
if place then -- it keeps its time
  call('HSET', KEYS[place + 2], holder, message(holder))
  return answer(0, holder, '', 1)
end
for k = 4, #KEYS, 3 do -- nothing can be changed in a stream: it goes to the end, unless it has waited for too long
  if KEYS[k] == notes.stream and notes.entry ~= '' and now < notes.since + bound and whereabouts(KEYS[k], notes.entry) == 'queued' then
    local entry = call('XADD', KEYS[mine], '*', 'id', holder, unpack(ARGV, 10)) -- first: if it is refused, the other stays
    call('XDEL', KEYS[k], notes.entry)
    call('HSET', KEYS[2], 'entry', entry, 'stream', KEYS[mine])
    return answer(0, holder, entry, 1)
  end
end
local after = delayed(notes.next)
if after then -- what waits for the end of the one that runs
  call('HSET', KEYS[after + 2], notes.next, message(notes.next))
  call('HSET', KEYS[2], 'due', whole(due))
  return answer(0, notes.next, '', 1)
end
local left = math.max(1, call('PTTL', KEYS[1])) -- its due time, should nobody say that the one that runs has ended
delay(KEYS[mine + 1], KEYS[mine + 2], ARGV[8], math.max(due, now + left), own, message(own))
hold_key(holder, left, 'next', own, 'due', whole(due), 'ttl', ARGV[5])
return answer(1, own, '', 0)
