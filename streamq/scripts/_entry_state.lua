-- Prepended to scripts that call entry_state.
-- The state of an entry: 'queued', 'running' (pending for a consumer), or 'unknown' (not in the stream).
local function entry_state(stream, entry)
  if #call('XRANGE', stream, entry, entry) == 0 then return 'unknown' end
  for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if #call('XPENDING', stream, group.name, entry, entry, 1) > 0 then return 'running' end
  end
  return 'queued'
end
