-- Prepended to scripts that call carry_out, after _send_effects.
-- join_group: a member of a group is done. Once all members are, the next task is sent, with their results in order if it takes them.
-- Results are joined as text: decoding would lose digits. KEYS: join stream delayed messages.
-- ARGV: index result size keep_ms member delay_ms channel rest('' if it takes no results) field value...
function checks.join_group(keys, args)
  call('HLEN', keys[1])
  ask(keys[1], 'HSET', 'HGET', 'PEXPIRE', 'DEL')
  if args[6] == '0' then checks.send_task({keys[2]}) else checks.delay_task({keys[3], keys[4]}) end
  call('XLEN', keys[2])
end

-- The results of all members, but nil if some are missing. What is no member's in the hash does not count.
local function results_of(join, size)
  local results = {}
  if call('HLEN', join) < size then return nil end
  for i = 1, size do
    results[i] = call('HGET', join, i)
    if not results[i] then return nil end
  end
  return results
end

function effects.join_group(keys, args)
  if workflow.cancelled then return end
  local fields = {unpack(args, 9)}
  call('HSET', keys[1], args[1], args[2])
  call('PEXPIRE', keys[1], whole(args[4], 1))
  local results = results_of(keys[1], tonumber(args[3]))
  if not results then return end
  if args[8] ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'args', '[[' .. table.concat(results, ',') .. ']' .. args[8]
  end
  if args[6] == '0' then
    effects.send_task({keys[2]}, fields)
  else
    effects.delay_task({keys[3], keys[4]}, {args[5], args[6], args[7], cjson.encode(fields)})
  end
  call('DEL', keys[1])
end
