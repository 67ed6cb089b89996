-- Prepended to debounce and keep_last; reads their KEYS and ARGV. For deduplication keys for which the newest message wins.
local own, mine, now, due, bound = ARGV[1], 1 + 3 * ARGV[2], clock(), tonumber(ARGV[4]), tonumber(ARGV[6])
if due == 0 then due = now + ARGV[3] end
local known = ARGV[7] ~= '0' and call('GET', KEYS[3]) -- the task id in the first reply to this enqueue
local holder, notes, flat = call('GET', KEYS[1]), {}, call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do notes[flat[i]] = flat[i + 1] end
if notes.id ~= holder then notes = {} end
local since = tonumber(notes.since or now) or now -- somebody else's note is no time
if not known then -- what no change may find refused: rights, and the types of the keys
  ask(KEYS[1], 'SET')
  ask(KEYS[2], 'DEL', 'HSET', 'PEXPIRE')
  if ARGV[7] ~= '0' then ask(KEYS[3], 'SET') end
  for k = 4, #KEYS, 3 do
    ask(KEYS[k], 'XDEL')
    ask(KEYS[k + 1], 'ZREM')
    ask(KEYS[k + 2], 'HSET', 'HDEL')
  end
  if due > now then call('ZCARD', KEYS[mine + 1]) call('HLEN', KEYS[mine + 2]) ask(KEYS[mine + 1], 'ZADD') end
end

local function message(id)
  return '["id",' .. cjson.encode(id) .. ',' .. ARGV[9]
end

-- The index of the keys of the tier in which a task is delayed. Their types are looked at.
local function delayed(id)
  for k = 4, #KEYS, 3 do
    if id and call('ZSCORE', KEYS[k + 1], id) then call('HLEN', KEYS[k + 2]) return k end
  end
end

-- Send the message under this id, now or later; returns its entry, or ''.
local function send(id, at)
  if at <= now then return call('XADD', KEYS[mine], '*', 'id', id, unpack(ARGV, 12)) end
  delay(KEYS[mine + 1], KEYS[mine + 2], ARGV[8], at, id, message(id))
  return ''
end
