-- Prepended to scripts that call remove_settled: settled entries are deleted from their stream.
local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Has one of these groups still to get this entry, or to acknowledge it?
local function still_needed(stream, groups, id)
  local ms, seq = split(id)
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    local last_ms, last_seq = split(group['last-delivered-id'])
    if ms > last_ms or (ms == last_ms and seq > last_seq) then return true end
    if #call('XPENDING', stream, group.name, id, id, 1) > 0 then return true end
  end
  return false
end

-- Delete settled entries from the stream, once every group has acknowledged them.
local function remove_settled(stream, ids)
  local groups = call('XINFO', 'GROUPS', stream)
  if #groups > 1 then
    local gone = {}
    for _, id in ipairs(ids) do
      if not still_needed(stream, groups, id) then gone[#gone + 1] = id end
    end
    ids = gone
  end
  if #ids > 0 then call('XDEL', stream, unpack(ids)) end
end
