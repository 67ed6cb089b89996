-- Prepended to the scripts that call carry_out; look_over comes before their first change. What a settlement brings with it, in the same step.
local means = {}

-- tell: a result is kept, and who waits for it is told. KEYS: result. ARGV: ttl_ms payload
function means.tell(keys, args)
  call('SET', keys[1], args[2], 'PX', args[1])
  call('PUBLISH', keys[1], args[2])
end

-- free: a deduplication key is free again, if it is still this task's. The task that waits for this (see
-- keep_last) gets it, and may run. KEYS: dedup [latest, and for each tier: delayed]. ARGV: id [channel]
function means.free(keys, args)
  if call('GET', keys[1]) ~= args[1] then return end
  local due, ttl, after = 0, 0, nil
  if keys[2] then
    local noted = call('HMGET', keys[2], 'due', 'ttl', 'next', 'id')
    if noted[4] == args[1] then due, ttl, after = tonumber(noted[1]), noted[2], noted[3] end
    call('DEL', keys[2])
  end
  call('DEL', keys[1])
  for k = 3, #keys do
    if after and call('ZSCORE', keys[k], after) then
      local ms = string.format('%.0f', ttl + math.max(0, due - clock()))
      call('SET', keys[1], after, 'PX', ms)
      call('HSET', keys[2], 'id', after, 'ttl', ttl, 'entry', '', 'since', '0')
      call('PEXPIRE', keys[2], ms)
      call('ZADD', keys[k], string.format('%.0f', math.max(0, due)), after)
      if call('ZRANGE', keys[k], 0, 0)[1] == after then call('PUBLISH', args[2], 'due') end
    end
  end
end

-- send: a task is sent. KEYS: stream. ARGV: field value...
function means.send(keys, args)
  call('XADD', keys[1], '*', unpack(args))
end

-- later: a task is sent, after a while. KEYS: delayed messages. ARGV: member delay_ms channel message
function means.later(keys, args)
  local member, copy = args[1], 1
  while call('HEXISTS', keys[2], member) == 1 do -- an id may be sent twice
    copy = copy + 1
    member = args[1] .. ':' .. copy
  end
  delay(keys[1], keys[2], args[3], clock() + args[2], member, args[4])
end

-- What reads each of their keys and changes nothing; another type refuses it. A result may replace anything.
local reads = {
  tell = {}, free = {'GET', 'HLEN', rest = 'ZCARD'}, send = {'XLEN'}, later = {'ZCARD', 'HLEN'},
  join = {'HLEN', 'XLEN', 'ZCARD', 'HLEN'},
}

-- Fail before anything is done, if something of what carry_out will do would be refused.
local function look_over(key, at)
  while at <= #ARGV do
    local names, keys = reads[ARGV[at]], tonumber(ARGV[at + 1])
    for k = 1, keys do
      local read = names[k] or names.rest
      if read then call(read, KEYS[key + k - 1]) end
    end
    key, at = key + keys, at + 3 + ARGV[at + 2]
  end
end

-- Carry out what stands in KEYS from `key` on and in ARGV from `at` on: name, number of keys, number of arguments, the arguments.
local function carry_out(key, at)
  while at <= #ARGV do
    local keys, args = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    means[ARGV[at]]({unpack(KEYS, key, key + keys - 1)}, {unpack(ARGV, at + 3, at + 2 + args)})
    key, at = key + keys, at + 3 + args
  end
end
