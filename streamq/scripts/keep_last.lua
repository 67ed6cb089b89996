-- keep_last: accept a task, or replace the message of the one that waits. While one runs, one waits for its end.
-- KEYS: dedup latest accepted, then for each tier: stream delayed messages
-- ARGV: id tier(from 1) delay_ms due_ms(0: by delay, -1: now) ttl_ms bound_ms accepted_ms(0: none) channel rest old_result old_progress(see enqueue) field value...
-- Returns {1 if it is a task of its own, id of the task that will run, its entry or '', now or 0, 1 if it replaced a message}.
if known then return {0, known, '', '0', 0} end
local place = holder and delayed(holder)
if not holder then
  local entry = send(own, due)
  hold_key(own, ARGV[5] + math.max(0, due - now), 'entry', entry, 'stream', KEYS[mine], 'since', whole(now), 'ttl', ARGV[5])
  return reply(1, own, entry, 0)
end
if place then -- delayed: it keeps its due time
  call('HSET', KEYS[place + 2], holder, message(holder))
  return reply(0, holder, '', 1)
end
for k = 4, #KEYS, 3 do -- an entry cannot be changed: a new one goes to the end of the stream, unless the task has waited too long
  if KEYS[k] == notes.stream and notes.entry ~= '' and now < since + bound and entry_state(KEYS[k], notes.entry) == 'queued' then
    local entry = call('XADD', KEYS[mine], '*', 'id', holder, unpack(ARGV, 12)) -- first: if it is refused, the old entry stays
    call('XDEL', KEYS[k], notes.entry)
    call('HSET', KEYS[2], 'entry', entry, 'stream', KEYS[mine])
    return reply(0, holder, entry, 1)
  end
end
local after = delayed(notes.next)
if after then -- the task that waits for the end of the running one
  call('HSET', KEYS[after + 2], notes.next, message(notes.next))
  call('HSET', KEYS[2], 'due', whole(due))
  return reply(0, notes.next, '', 1)
end
local left = math.max(1, call('PTTL', KEYS[1])) -- its due time, if the end of the running one is never noted
delay(KEYS[mine + 1], KEYS[mine + 2], ARGV[8], math.max(due, now + left), own, message(own))
hold_key(holder, left, 'next', own, 'due', whole(due), 'ttl', ARGV[5])
return reply(1, own, '', 0)
