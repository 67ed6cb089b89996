-- Prepended to scripts that call carry_out, after _workflow_effects: the side effects that send tasks.
-- send_task: a task is sent. KEYS: stream. ARGV: field value...
function checks.send_task(keys) check_stream(keys[1]) end

function effects.send_task(keys, args)
  if workflow.cancelled then return end
  local entry = call('XADD', keys[1], '*', unpack(args))
  note_sent(args, entry)
end

-- delay_task: a task is sent after a delay. KEYS: delayed messages. ARGV: member delay_ms channel message
function checks.delay_task(keys)
  call('ZCARD', keys[1])
  call('HLEN', keys[2])
  ask(keys[1], 'ZADD')
  ask(keys[2], 'HSET', 'HEXISTS')
end

function effects.delay_task(keys, args)
  if workflow.cancelled then return end
  local member, copy = args[1], 1
  while call('HEXISTS', keys[2], member) == 1 do -- the same id may be sent twice
    copy = copy + 1
    member = args[1] .. '|' .. copy
  end
  delay(keys[1], keys[2], args[3], clock() + args[2], member, args[4])
  if workflow.record then note_sent(cjson.decode(args[4]), '@' .. whole(clock())) end
end
