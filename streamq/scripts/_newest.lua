-- Prepended to debounce and keep_last, and reads their KEYS and ARGV: a deduplication key for which the newest wins.
local own, mine, now, due, bound = ARGV[1], 1 + 3 * ARGV[2], clock(), tonumber(ARGV[4]), tonumber(ARGV[6])
if due == 0 then due = now + ARGV[3] end
local known = ARGV[7] ~= '0' and call('GET', KEYS[3]) -- who this enqueue was answered with before
local holder, notes, flat = call('GET', KEYS[1]), {}, call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do notes[flat[i]] = flat[i + 1] end
if notes.id ~= holder then notes = {} end

local function whole(ms)
  return string.format('%.0f', ms)
end

local function message(id)
  return '["id",' .. cjson.encode(id) .. ',' .. ARGV[9]
end

-- Where the keys of the tier begin in which a task is delayed.
local function delayed(id)
  for k = 4, #KEYS, 3 do
    if id and call('ZSCORE', KEYS[k + 1], id) then return k end
  end
end

-- Send what came under this id; returns the entry.
local function put(id, at)
  if at <= now then return call('XADD', KEYS[mine], '*', 'id', id, unpack(ARGV, 10)) end
  delay(KEYS[mine + 1], KEYS[mine + 2], ARGV[8], at, id, message(id))
  return ''
end

-- The key is this task's for so long, and this is noted of it.
local function hold_key(id, ms, ...)
  ms = whole(math.max(1, ms))
  call('SET', KEYS[1], id, 'PX', ms)
  if notes.id == nil then call('DEL', KEYS[2]) end
  call('HSET', KEYS[2], 'id', id, ...)
  call('PEXPIRE', KEYS[2], ms)
end

local function answer(fresh, id, entry, replaced)
  if ARGV[7] ~= '0' then call('SET', KEYS[3], id, 'PX', ARGV[7]) end
  return {fresh, id, entry, fresh == 1 and whole(now) or '0', replaced}
end
