-- Prepended to debounce and keep_last; reads their KEYS and ARGV. For deduplication keys for which the newest message wins.
local own, mine, now, due, bound = ARGV[1], 1 + 3 * ARGV[2], clock(), tonumber(ARGV[4]), tonumber(ARGV[6])
if due == 0 then due = now + ARGV[3] end
local known = ARGV[7] ~= '0' and call('GET', KEYS[3]) -- the task id in the first reply to this enqueue
local holder, notes, flat = call('GET', KEYS[1]), {}, call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do notes[flat[i]] = flat[i + 1] end
if notes.id ~= holder then notes = {} end

local function whole(ms)
  return string.format('%.0f', ms)
end

local function message(id)
  return '["id",' .. cjson.encode(id) .. ',' .. ARGV[9]
end

-- The index of the keys of the tier in which a task is delayed.
local function delayed(id)
  for k = 4, #KEYS, 3 do
    if id and call('ZSCORE', KEYS[k + 1], id) then return k end
  end
end

-- Send the message under this id, now or later; returns its entry, or ''.
local function send(id, at)
  if at <= now then return call('XADD', KEYS[mine], '*', 'id', id, unpack(ARGV, 10)) end
  delay(KEYS[mine + 1], KEYS[mine + 2], ARGV[8], at, id, message(id))
  return ''
end

-- Give the key to this task for so long, and write these fields to its hash.
local function hold_key(id, ms, ...)
  ms = whole(math.max(1, ms))
  call('SET', KEYS[1], id, 'PX', ms)
  if notes.id == nil then call('DEL', KEYS[2]) end
  call('HSET', KEYS[2], 'id', id, ...)
  call('PEXPIRE', KEYS[2], ms)
end

local function reply(fresh, id, entry, replaced)
  if ARGV[7] ~= '0' then call('SET', KEYS[3], id, 'PX', ARGV[7]) end
  return {fresh, id, entry, fresh == 1 and whole(now) or '0', replaced}
end
