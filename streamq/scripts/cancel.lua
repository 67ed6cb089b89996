-- cancel: a task that has not been delivered yet is withdrawn.
-- KEYS: stream delayed messages crashes side_effect...
-- ARGV: entry_id('' if unknown) channel mark_ttl_ms members member... (its possible names in the delayed set) side_effect... (of its withdrawal)
-- Returns 'delayed' or 'queued' (withdrawn), 'running' (its worker is told to stop), or 'unknown'.
local entry, found, names = ARGV[1], 'unknown', {}
for i = 5, 4 + ARGV[4] do
  if call('ZSCORE', KEYS[2], ARGV[i]) then names[#names + 1] = ARGV[i] end
end
if #names > 0 then found = 'delayed' elseif entry ~= '' then found = entry_state(KEYS[1], entry) end
if found == 'running' then -- the renewal of its lease finds the mark, if the word is lost
  begin_settling(KEYS[1])
  local said = mark_cancelled(KEYS[4], entry, ARGV[3])
  if type(said) == 'table' and string.find(said.err, 'READONLY', 1, true) then return said end
  local heard = publish(ARGV[2], 'cancel ' .. entry .. ' ' .. KEYS[1]) -- entries of two streams may have one id
  if type(said) == 'table' and (type(heard) == 'table' or heard == 0) then return said end -- nobody knows of it
end
if found ~= 'queued' and found ~= 'delayed' then return found end
check_side_effects(5, 5 + ARGV[4])
call('HLEN', KEYS[3]) -- a key of another type refuses before any change
if found == 'queued' then ask(KEYS[1], 'XDEL') else ask(KEYS[2], 'ZREM') ask(KEYS[3], 'HDEL') end
begin_settling(KEYS[1])
carry_out(5, 5 + ARGV[4])
for _, name in ipairs(names) do
  call('ZREM', KEYS[2], name)
  call('HDEL', KEYS[3], name)
end
if found == 'queued' then call('XDEL', KEYS[1], entry) end
return found
