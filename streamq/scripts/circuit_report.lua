-- circuit_report: write the new state of a process's circuit for the monitor, or remove the circuit.
-- KEYS: circuit circuits
-- ARGV: name keep_ms max_indexed [field value]...
-- Without fields it is removed: it is closed.
clock()
call('HLEN', KEYS[1]) -- a key of another type refuses before any change
ask(KEYS[1], 'HSET', 'PEXPIRE')
call('DEL', KEYS[1])
drop_from_index(KEYS[2], ARGV[1])
if #ARGV > 3 then
  call('HSET', KEYS[1], 'since', whole(clock()), unpack(ARGV, 4))
  call('PEXPIRE', KEYS[1], ARGV[2])
  add_to_index(KEYS[2], ARGV[1], ARGV[2])
end
trim_index(KEYS[2], ARGV[3])
return 0
