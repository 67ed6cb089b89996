-- Prepended to scripts that call delete_old, as their last act: what earlier tasks have left is deleted.
-- Its keys stand in ARGV from `at` on; '' is none. They are not in KEYS: a user without a right to them would be refused
-- the whole step. So what they hold stays. (If a cluster can run a step, its keys have one hash tag: the namespace.)
-- With `mark` a key is deleted only if its value contains that.
local function delete_old(at, count, mark)
  for i = at, math.min(at + count - 1, #ARGV) do
    local value = mark and redis.pcall('GET', ARGV[i])
    if ARGV[i] ~= '' and (not mark or type(value) == 'string' and string.find(value, mark, 1, true)) then
      redis.pcall('DEL', ARGV[i])
    end
  end
end
