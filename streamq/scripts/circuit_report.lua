-- circuit_report: write the new state of a process's circuit for the monitor, or remove the circuit.
-- KEYS: circuit circuits
-- ARGV: name keep_ms max_indexed [field value]...
-- Without fields it is removed: it is closed.
local now, ttl = clock(), tonumber(ARGV[2])
call('DEL', KEYS[1])
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
call('ZREM', KEYS[2], ARGV[1])
if #ARGV > 3 then
  call('HSET', KEYS[1], 'since', string.format('%.0f', now), unpack(ARGV, 4))
  call('PEXPIRE', KEYS[1], ttl)
  call('ZADD', KEYS[2], string.format('%.0f', now + ttl), ARGV[1])
  call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[3])
  if call('PTTL', KEYS[2]) < ttl then call('PEXPIRE', KEYS[2], ttl) end
end
return 0
