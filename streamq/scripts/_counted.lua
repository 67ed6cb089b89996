-- Prepended to scripts that settle: what a settlement counts is written in its step, so that each counts exactly once.
-- It takes from the ends of KEYS and ARGV, where the script does not see them: the window [stats], and stats_ttl_s (0: there
-- is no window), counts (JSON, '' for nothing), shares (JSON, '' for one entry). `wire/counters.py` says what is in them.
local shares, counts, stats_ttl = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local stats = stats_ttl ~= '0' and table.remove(KEYS)

-- Count what this script has settled. `late` has the places (from 1 on) of the entries that had been settled before.
-- Counters are lesser than the work: what is refused here refuses no settlement. Returns the reply of the script;
-- {'uncounted', reply, counters} if they are not written, so that the worker writes them later.
local function counted(reply, late)
  if counts == '' then return reply end
  local found = cjson.decode(counts)
  local counters = found.add
  if #late > 0 and shares == '' then counters = found.late or {}
  elseif #late > 0 then counters = without(found, cjson.decode(shares), late) end
  if #counters == 0 then return reply end
  local written = stats and not add_counters(stats, stats_ttl, counters)
  return written and reply or {'uncounted', reply, counters}
end
