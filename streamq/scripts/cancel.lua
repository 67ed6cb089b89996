-- cancel: a task that has not been delivered yet is withdrawn.
-- KEYS: stream delayed messages result
-- ARGV: id entry_id('' if unknown) channel result_ttl_ms(0: none) result member... (names it may be delayed by)
-- Returns 'delayed' or 'queued' (withdrawn), 'running' (its worker has been told), or 'unknown'.
local entry = ARGV[2]
local found = 'unknown'
for i = 6, #ARGV do
  if call('ZREM', KEYS[2], ARGV[i]) == 1 then
    call('HDEL', KEYS[3], ARGV[i])
    found = 'delayed'
  end
end
if found == 'unknown' and entry ~= '' and #call('XRANGE', KEYS[1], entry, entry) == 1 then
  found = 'queued'
  for _, flat in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if #call('XPENDING', KEYS[1], group.name, entry, entry, 1) > 0 then found = 'running' end
  end
  if found == 'queued' then call('XDEL', KEYS[1], entry) end
end
if found == 'running' then call('PUBLISH', ARGV[3], 'cancel ' .. entry) end
if ARGV[4] ~= '0' and (found == 'queued' or found == 'delayed') then
  call('SET', KEYS[4], ARGV[5], 'PX', ARGV[4])
  call('PUBLISH', KEYS[4], ARGV[5])
end
return found
