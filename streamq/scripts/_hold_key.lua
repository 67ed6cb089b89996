-- Prepended to debounce and keep_last, after _newest_wins: who has the deduplication key, and the reply.
-- Give the key to this task for so long, and write these fields to its hash.
local function hold_key(id, ms, ...)
  ms = whole(ms, 1)
  call('SET', KEYS[1], id, 'PX', ms)
  if notes.id == nil then call('DEL', KEYS[2]) end
  call('HSET', KEYS[2], 'id', id, ...)
  call('PEXPIRE', KEYS[2], ms)
end

local function reply(fresh, id, entry, replaced)
  if ARGV[7] ~= '0' then call('SET', KEYS[3], id, 'PX', whole(ARGV[7], 1)) end
  if fresh == 1 then delete_old(10, 2) end
  return {fresh, id, entry, fresh == 1 and whole(now) or '0', replaced}
end
