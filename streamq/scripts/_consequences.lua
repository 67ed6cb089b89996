-- Prepended to the scripts that call carry_out. What a settlement brings with it, in the same step.
local means = {}

-- tell: a result is kept, and who waits for it is told. KEYS: result. ARGV: ttl_ms payload
function means.tell(keys, args)
  call('SET', keys[1], args[2], 'PX', args[1])
  call('PUBLISH', keys[1], args[2])
end

-- free: a deduplication key is free again, if it is still this task's. KEYS: dedup. ARGV: id
function means.free(keys, args)
  if call('GET', keys[1]) == args[1] then call('DEL', keys[1]) end
end

-- send: a task is sent. KEYS: stream. ARGV: field value...
function means.send(keys, args)
  call('XADD', keys[1], '*', unpack(args))
end

-- later: a task is sent, after a while. KEYS: delayed messages. ARGV: id delay_ms channel message
function means.later(keys, args)
  delay(keys[1], keys[2], args[3], clock() + args[2], args[1], args[4])
end

-- Carry out what stands in KEYS from `key` on and in ARGV from `at` on: name, number of keys, number of arguments, the arguments.
local function carry_out(key, at)
  while at <= #ARGV do
    local keys, args = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    means[ARGV[at]]({unpack(KEYS, key, key + keys - 1)}, {unpack(ARGV, at + 3, at + 2 + args)})
    key, at = key + keys, at + 3 + args
  end
end
