-- Prepended to the steps of an operation over dead letters. It is a hash; `at` is the entry id up to which it has come.
-- A step names the place from which it goes on. So no two steps go on from one place, whoever sends them, and one after
-- a refused step goes on from nowhere: nothing is done twice, and nothing is skipped.
local before = {} -- what this step has read: examined done passed

-- Why this operation may not go on from that place: 'gone', its state if it does not run, or 'moved'. nil if it may.
local function kept_from(operation, from)
  local found = call('HMGET', operation, 'state', 'at', 'examined', 'done', 'passed')
  if found[1] ~= 'running' then return found[1] or 'gone' end
  if found[2] ~= from then return 'moved' end
  for i = 1, 3 do before[i] = tonumber(found[2 + i] or 0) or 0 end
  ask(operation, 'HSET', 'PEXPIRE')
  clock()
end

-- Note that it has come to `to`: how many letters were looked at on the way, moved or removed, and passed over.
local function go_on(operation, to, ttl, examined, done, passed, why)
  call('HSET', operation, 'at', to, 'changed_at', whole(clock()), 'examined', whole(before[1] + examined),
    'done', whole(before[2] + done), 'passed', whole(before[3] + passed))
  if why ~= '' then call('HSET', operation, 'last_error', why) end
  call('PEXPIRE', operation, whole(ttl, 1))
end
