-- promote: delayed messages that are due move to their streams, oldest first.
-- KEYS: for each tier: stream delayed messages
-- ARGV: limit for each tier
-- Returns {number moved, ms until the next is due or -1, 1 if some that are due remain}.
local function sound(fields)
  if type(fields) ~= 'table' or #fields < 2 or #fields > 4000 or #fields % 2 == 1 then return false end
  for _, part in ipairs(fields) do
    if type(part) ~= 'string' then return false end
  end
  return true
end

local now, moved, next_due, more = clock(), 0, nil, 0
for k = 1, #KEYS, 3 do
  local first, due = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES'), {}
  if first[2] and tonumber(first[2]) <= now then
    due = call('ZRANGEBYSCORE', KEYS[k + 1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
  end
  if #due > 0 then call('XLEN', KEYS[k]) end -- a key of another type refuses before any change
  for _, id in ipairs(due) do
    local message = call('HGET', KEYS[k + 2], id)
    call('ZREM', KEYS[k + 1], id)
    call('HDEL', KEYS[k + 2], id)
    local fine, fields = pcall(cjson.decode, message or '[]')
    if not fine or not sound(fields) then
      fields = {'id', id, 'broken', message or ''} -- no message: its consumer dead-letters it
    end
    call('XADD', KEYS[k], '*', unpack(fields))
    moved = moved + 1
  end
  if #due == tonumber(ARGV[1]) then more = 1 end
  if #due > 0 then first = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES') end
  if first[2] then next_due = math.min(next_due or math.huge, tonumber(first[2])) end
end
return {moved, next_due and math.max(0, math.ceil(next_due - now)) or -1, more}
