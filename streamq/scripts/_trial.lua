-- Prepended to every script, for Redis before 7, where nothing tells what a user may do: the command is tried.
-- Its arguments are ones that the server refuses, or that find nothing, after it has looked at the user's rights.
local trials = not redis.acl_check_cmd and {
  XADD = {'0-0', '-', '-'}, XACK = {'-', '0-0'}, XDEL = {'0-0'}, XCLAIM = {'-', '-', '-', '0-0'},
  XAUTOCLAIM = {'-', '-', '-', '0-0'}, SET = {'-', 'PX', '0'}, DEL = {}, HSET = {'-', '-', '-'}, HDEL = {' '},
  ZADD = {'-', '-'}, ZREM = {' '}, ZREMRANGEBYSCORE = {'-', '-'}, ZREMRANGEBYRANK = {'-', '-'}, PEXPIRE = {'-'},
  EXPIRE = {'-'}, HINCRBY = {'-', '-'}, XGROUP = {' ', ' '}, XRANGE = {'-', '-', 'x'}, HGET = {' '}, HEXISTS = {' '}, ZRANGE = {'-', '-'},
  ZRANGEBYSCORE = {'-', '-'}, ZSCORE = {' '}, ZMSCORE = {' '}, HMGET = {' '}, ZRANK = {' '}, PTTL = {},
}

local function ask_by_trial(words, key)
  for _, word in ipairs(trials[words[1]]) do words[#words + 1] = word end
  if words[1] == 'DEL' then words[2] = key .. ' ' end -- DEL refuses no arguments: another key
  local said = redis.pcall(unpack(words))
  local why = type(said) == 'table' and said.err or ''
  for _, part in ipairs({'executing the script', 'ACL failure in script', 'Unknown Redis command'}) do
    if string.find(why, part, 1, true) then redis.call(unpack(words)) end -- raises it
  end
end
