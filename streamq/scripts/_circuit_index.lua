-- Prepended to scripts that write the index of circuits, which only the monitor reads: what is refused there refuses no step.
local function drop_from_index(index, name)
  redis.pcall('ZREM', index, name)
end

local function trim_index(index, most)
  redis.pcall('ZREMRANGEBYSCORE', index, '-inf', whole(clock()))
  redis.pcall('ZREMRANGEBYRANK', index, 0, -1 - most)
end

local function add_to_index(index, name, ttl)
  local added = redis.pcall('ZADD', index, whole(clock() + ttl), name)
  local left = type(added) ~= 'table' and redis.pcall('PTTL', index)
  if type(left) == 'number' and left < tonumber(ttl) then redis.pcall('PEXPIRE', index, ttl) end
end
