-- Prepended to reclaim, after _consumers and _crashes.
local function ask_to_claim(stream, alive, leases, crashes)
  ask(stream, 'XCLAIM', 'XAUTOCLAIM', 'XACK', 'XRANGE')
  ask(alive, 'ZMSCORE', 'ZRANGEBYSCORE')
  ask(leases, 'HMGET')
  ask(crashes, 'HGET', 'HSET', 'PEXPIRE')
end

-- Take one entry. Returns its fields, nil if it is not to be had.
local function claim(stream, group, me, idle, id)
  local got = call('XCLAIM', stream, group, me, idle, id)
  if got[1] then return got[1][2] end
  if #call('XRANGE', stream, id, id) == 0 then call('XACK', stream, group, id) end -- deleted by hand
end

-- Acknowledge entries that are pending for a consumer but were deleted from the stream.
local function ack_deleted(stream, group, consumer)
  for _, row in ipairs(call('XPENDING', stream, group, '-', '+', 1000, consumer)) do
    if #call('XRANGE', stream, row[1], row[1]) == 0 then call('XACK', stream, group, row[1]) end
  end
end

-- Take entries whose owners live, or are not known, if they were not renewed for `idle` ms. Returns the next cursor.
local function claim_stray(stream, group, me, idle, cursor, room, taken)
  local swept = call('XAUTOCLAIM', stream, group, me, idle, cursor, 'COUNT', room - #taken)
  for _, entry in ipairs(swept[2]) do
    if entry then
      taken[#taken + 1] = {entry[1], entry[2], evidence_of(KEYS[4], entry[1]) or '', 0, 0}
    else -- before Redis 7: deleted by hand, and the reply does not tell which
      ack_deleted(stream, group, me)
    end
  end
  return swept[1]
end
