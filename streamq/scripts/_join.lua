-- join: a member of a group is done. Once all are, what waits for them is sent, with their results in order if it is given
-- them. Results are joined as text: decoding them would cost digits. KEYS: join stream delayed messages.
-- ARGV: index result size keep_ms member delay_ms channel rest('' if it is not given them) field value...
function means.join(keys, args)
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
    means.send({keys[2]}, fields)
  else
    means.later({keys[3], keys[4]}, {args[5], args[6], args[7], cjson.encode(fields)})
  end
end
