-- replay: a dead letter becomes a task again, unless another client took it first, or another task holds its deduplication key.
-- The dead task itself may hold the key still: it could not be freed. Then the new task takes its place, also for the one that waits for its end (see keep_last).
-- KEYS: dead stream [dedup latest] [workflow]
-- ARGV: dead_entry_id id dead_task_id dedup_ttl_ms mark step('' if it is none of a workflow) number_of_later later_result... field value...
-- Of the results of later steps, those that contain `mark` are deleted: they say that this task failed.
-- Returns {entry, ''}: the new entry's id. {'', ''}: the dead letter is gone. {'', id}: the task that holds the key.
if #call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return {'', ''} end
local holder = KEYS[4] and call('GET', KEYS[3])
if holder and holder ~= ARGV[2] and holder ~= ARGV[3] then return {'', holder} end
local noted = holder and call('HMGET', KEYS[4], 'id')[1] == holder
ask(KEYS[1], 'XDEL')
if KEYS[4] then ask(KEYS[3], 'SET') end
if noted then ask(KEYS[4], 'HSET', 'PEXPIRE') end
local known = ARGV[6] ~= '' and call('HEXISTS', KEYS[#KEYS], 'plan') == 1
if known then ask(KEYS[#KEYS], 'HSET') end
local entry = call('XADD', KEYS[2], '*', unpack(ARGV, 8 + ARGV[7])) -- first: if it is refused, the dead letter stays
if KEYS[4] then call('SET', KEYS[3], ARGV[2], 'PX', whole(ARGV[4], 1)) end
if noted then
  call('HSET', KEYS[4], 'id', ARGV[2])
  call('PEXPIRE', KEYS[4], whole(ARGV[4], 1))
end
if known then call('HSET', KEYS[#KEYS], ARGV[6], 'sent ' .. entry .. ' ' .. ARGV[2]) end
call('XDEL', KEYS[1], ARGV[1])
delete_old(8, tonumber(ARGV[7]), ARGV[5])
return {entry, ''}
