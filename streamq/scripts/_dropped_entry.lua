-- Prepended to scripts that ask whether a delivery was dropped.
-- Is an entry in the stream, and in nobody's hands? XGROUP DELCONSUMER and DESTROY do that to what a consumer holds. Where
-- several groups read, it may also have been settled.
local function dropped_entry(stream, group, id)
  local entry = redis.pcall('XRANGE', stream, id, id)
  if entry.err or #entry == 0 then return false end
  local held, groups = redis.pcall('XPENDING', stream, group, id, id, 1), redis.pcall('XINFO', 'GROUPS', stream)
  return not held.err and #held == 0 and not groups.err and #groups == 1
end

-- Is a run of this consumer still to be settled by it?
local function holds_or_dropped(stream, group, consumer, id)
  return holds(stream, group, consumer, id) or dropped_entry(stream, group, id)
end
