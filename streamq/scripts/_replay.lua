-- Prepended to replay and operation_replay: a dead letter becomes a task again, unless another client took it first, or another task holds its deduplication key.
-- The dead task itself may hold the key still: it could not be freed. Then the new task takes its place, also for the one that waits for its end (see keep_last).
-- keys: dead stream [dedup latest] [workflow]
-- ARGV after `at`: dead_entry_id id dead_task_id dedup_ttl_ms mark step('' if it is none of a workflow) number_of_later later_result... field value...
-- Of the results of later steps, those that contain `mark` are deleted: they say that this task failed.
-- Returns {entry, ''}: the new entry's id. {'', ''}: the dead letter is gone. {'', id}: the task that holds the key.
local function replay_letter(keys, at)
  local dead, id, ttl, step, later = ARGV[at + 1], ARGV[at + 2], ARGV[at + 4], ARGV[at + 6], ARGV[at + 7]
  if #call('XRANGE', keys[1], dead, dead) == 0 then return {'', ''} end
  local holder = keys[4] and call('GET', keys[3])
  if holder and holder ~= id and holder ~= ARGV[at + 3] then return {'', holder} end
  local noted = holder and call('HMGET', keys[4], 'id')[1] == holder
  ask(keys[1], 'XDEL')
  if keys[4] then ask(keys[3], 'SET') end
  if noted then ask(keys[4], 'HSET', 'PEXPIRE') end
  local known = step ~= '' and call('HEXISTS', keys[#keys], 'plan') == 1
  if known then ask(keys[#keys], 'HSET') end
  local entry = call('XADD', keys[2], '*', unpack(ARGV, at + 8 + later)) -- first: if it is refused, the dead letter stays
  if keys[4] then call('SET', keys[3], id, 'PX', whole(ttl, 1)) end
  if noted then
    call('HSET', keys[4], 'id', id)
    call('PEXPIRE', keys[4], whole(ttl, 1))
  end
  if known then call('HSET', keys[#keys], step, 'sent ' .. entry .. ' ' .. id) end
  call('XDEL', keys[1], dead)
  delete_old(at + 8, tonumber(later), ARGV[at + 5])
  return {entry, ''}
end
