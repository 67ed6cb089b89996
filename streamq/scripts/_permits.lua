-- Prepended to the steps of a concurrency limit, whose KEYS are: permits called line limits delayed...
-- A place in the line is '<entry id> <expires, ms, or 0> <key of its delayed set> <member>'.
local foreign, woke = {}, false -- places whose delayed sets are not among KEYS; was anybody woken?

-- Have a delayed waiter come now. Returns nil if that cannot be known here, else whether it is delayed.
local function wake(place, now)
  local entry, _, key, member = string.match(place, '^(%S+) (%d+) (%S+) (.*)$')
  for k = 5, #KEYS do
    if KEYS[k] == key then
      for _, name in ipairs({member .. ':' .. entry, member}) do -- the first if one id was sent twice
        local due = call('ZSCORE', KEYS[k], name)
        if due and tonumber(due) > now then
          call('ZADD', KEYS[k], string.format('%.0f', now), name)
          woke = true
        end
        if due then return true end
      end
      return false
    end
  end
  foreign[#foreign + 1] = place
  return nil
end

-- Give what is free to the first of the line: call them, and keep a permit for each for `grant` ms, half a second if
-- it is not delayed: it is on its way there (after 5 s: gone). `max` is nil if not known: what has run out is free then.
local function hand_out(max, grant, channel)
  local now = clock()
  local stamp, looks = string.format('%.0f', now), 200
  for _, place in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', stamp)) do wake(place, now) end
  local over = call('ZREMRANGEBYSCORE', KEYS[2], '-inf', stamp) + call('ZREMRANGEBYSCORE', KEYS[1], '-inf', stamp)
  local busy = call('ZCARD', KEYS[1]) + call('ZCARD', KEYS[2])
  local free = max and max - busy or math.max(over, busy == 0 and 1 or 0)
  while free > 0 and looks > 0 do
    local place, since = unpack(call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES'))
    if not place then break end
    call('ZREM', KEYS[3], place)
    looks = looks - 1
    local there = wake(place, now)
    local gone = there == false and tonumber(since) < (now - 5000) * 1000
    local expires = tonumber(string.match(place, '^%S+ (%d+)'))
    if not gone and (expires == 0 or expires > now) then
      call('ZADD', KEYS[2], string.format('%.0f', now + (there == false and math.min(500, grant) or grant)), place)
      free = free - 1
    end
  end
  if woke then call('PUBLISH', channel, 'due') end
end

-- Note when somebody should look after this limit: when the first permit is over.
local function note(name)
  local first = math.huge
  for k = 1, 3 do
    local found = call('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')
    if found[2] then first = math.min(first, k == 3 and clock() + 1000 or tonumber(found[2])) end
    call('PEXPIRE', KEYS[k], 86400000)
  end
  if first == math.huge then call('ZREM', KEYS[4], name) return end
  call('ZADD', KEYS[4], string.format('%.0f', first), name)
  call('PEXPIRE', KEYS[4], 86400000)
end
