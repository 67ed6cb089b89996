-- Prepended to scripts that call deletable and delete_settled: settled entries are deleted from their stream.
-- Is the first entry id the later one? Their numbers may have more digits than Lua's.
local function later(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms == other_ms then ms, other_ms = seq, other_seq end
  if #ms ~= #other_ms then return #ms > #other_ms end
  return ms > other_ms
end

-- Has another group still to get this entry, or to acknowledge it?
local function still_needed(stream, own, groups, id)
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if later(id, group['last-delivered-id']) then return true end
    if group.name ~= own and #call('XPENDING', stream, group.name, id, id, 1) > 0 then return true end
  end
  return false
end

-- The entries that may be deleted once `own` has acknowledged them, and whether `own` reads alone: then whatever is still in
-- the stream is not settled, though its group or its consumer was removed. Asks for what that needs: call it before any change.
local function deletable(stream, own, ids)
  local groups, gone = call('XINFO', 'GROUPS', stream), ids
  if #groups > 1 then
    gone = {}
    for _, id in ipairs(ids) do
      if not still_needed(stream, own, groups, id) then gone[#gone + 1] = id end
    end
  end
  ask(stream, 'XDEL')
  return gone, #groups < 2
end

local function delete_settled(stream, ids)
  return #ids > 0 and call('XDEL', stream, unpack(ids)) or 0
end
