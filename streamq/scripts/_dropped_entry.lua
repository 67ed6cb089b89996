-- Prepended to renew.
-- Is an entry in the stream, and in nobody's hands? XGROUP DELCONSUMER does that to what its consumer holds. Where several
-- groups read, it may also have been settled.
local function dropped_entry(stream, group, id)
  local entry = redis.pcall('XRANGE', stream, id, id)
  if entry.err or #entry == 0 then return false end
  local held, groups = redis.pcall('XPENDING', stream, group, id, id, 1), redis.pcall('XINFO', 'GROUPS', stream)
  return not held.err and #held == 0 and not groups.err and #groups == 1
end
