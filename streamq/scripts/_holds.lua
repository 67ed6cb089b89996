-- Prepended to scripts that act on a delivery only if a consumer holds it.
local function holds(stream, group, consumer, id)
  return #call('XPENDING', stream, group, id, id, 1, consumer) > 0
end
