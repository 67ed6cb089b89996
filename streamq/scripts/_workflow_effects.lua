-- Prepended to scripts that call carry_out, after _side_effects: the record of a workflow, and of its steps.
-- The workflow whose first or next steps this script sends; `mark` is what the fields of its steps end in.
local workflow = {}

-- begin_workflow: a workflow begins. KEYS: workflow. ARGV: plan total ttl_ms
function checks.begin_workflow(keys)
  call('HLEN', keys[1])
  ask(keys[1], 'HSET', 'DEL', 'PEXPIRE')
end

function effects.begin_workflow(keys, args)
  workflow = {record = keys[1], mark = ''}
  call('HSET', keys[1], 'plan', args[1], 'total', args[2]) -- first: a full server refuses it
  if call('HLEN', keys[1]) > 2 then -- what an earlier workflow of this id has left
    call('DEL', keys[1])
    call('HSET', keys[1], 'plan', args[1], 'total', args[2])
  end
  call('PEXPIRE', keys[1], whole(args[3], 1))
end

-- note_step: a step has ended. If the workflow was cancelled, no step is sent after it. KEYS: workflow. ARGV: number group state ttl_ms ended_ttl_ms
function checks.note_step(keys)
  call('HLEN', keys[1])
  ask(keys[1], 'HMGET', 'HSET', 'PTTL', 'PEXPIRE')
end

function effects.note_step(keys, args)
  local field, count = args[1] .. ':' .. args[2], 'done:' .. args[2]
  local noted = call('HMGET', keys[1], 'total', 'cancelled', field, count)
  if not noted[1] then return end -- nothing is known of it any more
  workflow = {record = keys[1], mark = ':' .. args[2], cancelled = noted[2]}
  local done = (tonumber(noted[4] or 0) or 0) + (args[3] == 'done' and noted[3] ~= 'done' and 1 or 0)
  call('HSET', keys[1], field, args[3], count, whole(done))
  local ended = done >= (tonumber(noted[1]) or 0)
  if ended or call('PTTL', keys[1]) < tonumber(args[4]) then call('PEXPIRE', keys[1], whole(ended and args[5] or args[4], 1)) end
end

local function note_sent(fields, entry)
  for i = 1, workflow.record and #fields or 0, 2 do
    local number = fields[i] == 'workflow' and string.match(fields[i + 1], '%.(%d+)$')
    if number then call('HSET', workflow.record, number .. workflow.mark, 'sent ' .. entry) end
  end
end
