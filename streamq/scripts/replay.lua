-- replay: a dead letter becomes a task again, unless another client took it first, or a task holds its deduplication key.
-- A task that was refused for its signature keeps its id, and may hold the key still.
-- KEYS: dead stream [dedup]
-- ARGV: dead_entry_id id dedup_ttl_ms field value...
-- Returns {entry, ''}: the new entry's id. {'', ''}: the dead letter is gone. {'', id}: the task that holds the key.
if #call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return {'', ''} end
local holder = KEYS[3] and call('GET', KEYS[3])
if holder and holder ~= ARGV[2] then return {'', holder} end
ask(KEYS[1], 'XDEL')
if KEYS[3] then ask(KEYS[3], 'SET') end
local entry = call('XADD', KEYS[2], '*', unpack(ARGV, 4)) -- first: if it is refused, the dead letter stays
if KEYS[3] then call('SET', KEYS[3], ARGV[2], 'PX', whole(ARGV[3], 1)) end
call('XDEL', KEYS[1], ARGV[1])
return {entry, ''}
