-- cancel: a task that has not been delivered yet is withdrawn.
-- KEYS: stream delayed messages side_effect...
-- ARGV: entry_id('' if unknown) channel members member... (its possible names in the delayed set) side_effect... (of its withdrawal)
-- Returns 'delayed' or 'queued' (withdrawn), 'running' (its worker is told to stop), or 'unknown'.
local entry, members = ARGV[1], tonumber(ARGV[3])
local found = 'unknown'
check_types(4, 4 + members)
call('HLEN', KEYS[3]) -- a key of another type refuses before any change
for i = 4, 3 + members do
  if call('ZREM', KEYS[2], ARGV[i]) == 1 then
    call('HDEL', KEYS[3], ARGV[i])
    found = 'delayed'
  end
end
if found == 'unknown' and entry ~= '' then
  found = entry_state(KEYS[1], entry)
  if found == 'queued' then call('XDEL', KEYS[1], entry) end
end
if found == 'running' then call('PUBLISH', ARGV[2], 'cancel ' .. entry) end
if found == 'queued' or found == 'delayed' then carry_out(4, 4 + members) end
return found
