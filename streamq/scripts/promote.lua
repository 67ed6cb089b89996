-- promote: delayed messages that are due move to their streams, oldest first.
-- KEYS: for each tier: stream delayed messages
-- ARGV: limit for each tier
-- Returns {number moved, ms until the next is due or -1, 1 if some that are due remain}.
-- A tier that refuses its messages holds up no other; its error is raised once nothing can be moved.
local now, moved, next_due, more, refused = clock(), 0, nil, 0, nil
for k = 1, #KEYS, 3 do
  local stream, delayed, messages = unpack(KEYS, k, k + 2)
  local first, due = redis.pcall('ZRANGE', delayed, 0, 0, 'WITHSCORES'), {}
  refused = refused or first.err and first
  if first[2] and tonumber(first[2]) <= now then
    due = call('ZRANGEBYSCORE', delayed, '-inf', whole(now), 'LIMIT', 0, ARGV[1])
    ask(delayed, 'ZREM')
    ask(messages, 'HDEL')
    begin_settling(stream)
  end
  for _, id in ipairs(due) do
    local message = redis.pcall('HGET', messages, id)
    local entry = type(message) == 'table' and message or redis.pcall('XADD', stream, '*', unpack(fields_of(id, message)))
    if type(entry) == 'table' then -- an error: the message stays
      refused = refused or entry
      break
    end
    call('ZREM', delayed, id)
    call('HDEL', messages, id)
    moved = moved + 1
  end
  if #due == tonumber(ARGV[1]) then more = 1 end
  if #due > 0 then first = call('ZRANGE', delayed, 0, 0, 'WITHSCORES') end
  if first[2] then next_due = math.min(next_due or math.huge, tonumber(first[2])) end
end
if refused and moved == 0 then return refused end
return {moved, next_due and math.max(0, math.ceil(math.min(next_due - now, 9e15))) or -1, more}
