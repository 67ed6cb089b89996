-- start_workflow: the first steps of a workflow are sent, all or none, once per guard key.
-- KEYS: guard... side_effect...
-- ARGV: id guards ttl_ms number_of_old old... (what earlier tasks of the ids of its steps have left) side_effect...
-- Returns {accepted, id, '', the server's time in ms}.
local guards, old, now = tonumber(ARGV[2]), tonumber(ARGV[4]), whole(clock())
for g = 1, guards do
  if call('GET', KEYS[g]) then return {0, ARGV[1], '', now} end
end
check_side_effects(guards + 1, 5 + old)
for g = 1, guards do ask(KEYS[g], 'SET') end
carry_out(guards + 1, 5 + old)
for g = 1, guards do call('SET', KEYS[g], ARGV[1], 'PX', whole(ARGV[3], 1)) end
delete_old(5, old)
return {1, ARGV[1], '', now}
