-- find_entry: the entry of a task among the entries of a stream, by the task's id.
-- KEYS: stream
-- ARGV: id from count
-- Returns {entry or '', where the next call begins, 1 if there may be more}.
local rows, from = call('XRANGE', KEYS[1], ARGV[2], '+', 'COUNT', ARGV[3]), ARGV[2]
for _, row in ipairs(rows) do
  local id = row[1]
  for i = 1, #row[2], 2 do
    if row[2][i] == 'id' and row[2][i + 1] ~= '' then id = row[2][i + 1] end
  end
  if id == ARGV[1] then return {row[1], row[1], 0} end
  from = '(' .. row[1]
end
return {'', from, #rows == tonumber(ARGV[3]) and 1 or 0}
