-- debounce: accept a task, or replace the message of the delayed one and let that wait again.
-- KEYS: dedup latest accepted, then for each tier: stream delayed messages
-- ARGV: id tier(from 1) delay_ms due_ms(0: by delay, -1: now) ttl_ms bound_ms accepted_ms(0: none) channel rest old_result old_progress(see enqueue) field value...
-- Returns {1 if it is a task of its own, id of the task that will run, its entry or '', now or 0, 1 if it replaced a message}.
if known then return {0, known, '', '0', 0} end
local place = holder and delayed(holder)
local id = place and holder or own
if not place then since = now end
if bound >= 0 then due = math.min(due, since + bound) end
local entry = send(id, due) -- first: if it is refused, the old message stays
if place and (place ~= mine or entry ~= '') then
  call('ZREM', KEYS[place + 1], id)
  call('HDEL', KEYS[place + 2], id)
end
hold_key(id, due - now, 'since', whole(since))
return reply(place and 0 or 1, id, entry, place and 1 or 0)
