-- Prepended to scripts that call carry_out, after _side_effects: the side effects that send tasks.
-- send_task: a task is sent. KEYS: stream. ARGV: field value...
function effects.send_task(keys, args)
  call('XADD', keys[1], '*', unpack(args))
end

-- delay_task: a task is sent after a delay. KEYS: delayed messages. ARGV: member delay_ms channel message
function effects.delay_task(keys, args)
  local member, copy = args[1], 1
  while call('HEXISTS', keys[2], member) == 1 do -- the same id may be sent twice
    copy = copy + 1
    member = args[1] .. ':' .. copy
  end
  delay(keys[1], keys[2], args[3], clock() + args[2], member, args[4])
end

-- join_group: a member of a group is done. Once all members are, the next task is sent, with their results in order if it takes them.
-- Results are joined as text: decoding would lose digits. KEYS: join stream delayed messages.
-- ARGV: index result size keep_ms member delay_ms channel rest('' if it takes no results) field value...
function effects.join_group(keys, args)
  local size, fields = tonumber(args[3]), {unpack(args, 9)}
  call('HSET', keys[1], args[1], args[2])
  call('PEXPIRE', keys[1], args[4])
  if call('HLEN', keys[1]) < size then return end
  if args[8] ~= '' then
    local results = {}
    for i = 1, size do results[i] = call('HGET', keys[1], i) or 'null' end
    fields[#fields + 1] = 'args'
    fields[#fields + 1] = '[[' .. table.concat(results, ',') .. ']' .. args[8]
  end
  call('DEL', keys[1])
  if args[6] == '0' then
    effects.send_task({keys[2]}, fields)
  else
    effects.delay_task({keys[3], keys[4]}, {args[5], args[6], args[7], cjson.encode(fields)})
  end
end
