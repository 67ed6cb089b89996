-- add_counters: the counters of a worker are added to a window of time.
-- KEYS: stats
-- ARGV: ttl_s name amount...
-- Returns how many could not be added, because somebody else's value is no number, or the whole key is something else.
ask(KEYS[1], 'HINCRBY', 'EXPIRE')
local lost = 0
for i = 2, #ARGV, 2 do
  local sum = redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  if type(sum) == 'table' then
    local foreign = string.find(sum.err, 'integer', 1, true) or string.find(sum.err, 'overflow', 1, true)
    if not foreign and not string.find(sum.err, 'WRONGTYPE', 1, true) then return sum end -- OOM, READONLY: of the first one
    lost = lost + 1
  end
end
if lost < (#ARGV - 1) / 2 then call('EXPIRE', KEYS[1], ARGV[1]) end
return lost
