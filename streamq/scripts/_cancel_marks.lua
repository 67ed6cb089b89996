-- Prepended to scripts that call mark_cancelled, marks_of, cancelled_among or cancelled_of: entries whose runs are to be cancelled.
-- A mark is a field of the hash of crashes: so the settlement of its entry deletes it (see clear_crashes).
local function mark_cancelled(crashes, entry, ttl)
  local said = redis.pcall('HSET', crashes, entry .. ':cancel', '1')
  if type(said) ~= 'table' then redis.pcall('PEXPIRE', crashes, ttl) end
  return said
end

-- Is there evidence about entries, and is this one to be cancelled? What may not be read is no mark.
local function marks_of(crashes, entry)
  local exists = redis.pcall('EXISTS', crashes) ~= 0
  return exists, exists and type(redis.pcall('HGET', crashes, entry .. ':cancel')) == 'string'
end

local function cancelled_among(crashes, ids)
  local found = {}
  if #ids == 0 or redis.pcall('EXISTS', crashes) ~= 1 then return found end
  for from = 1, #ids, 1000 do -- Lua's unpack allows some thousands
    local fields = {}
    for i = from, math.min(from + 999, #ids) do fields[#fields + 1] = ids[i] .. ':cancel' end
    for i, mark in ipairs(redis.pcall('HMGET', crashes, unpack(fields))) do
      if mark then found[#found + 1] = ids[from + i - 1] end
    end
  end
  return found
end

local function cancelled_of(crashes, taken) -- deliveries, each with its id first
  local ids = {}
  for i, one in ipairs(taken) do ids[i] = one[1] end
  return cancelled_among(crashes, ids)
end
