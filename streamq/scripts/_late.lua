-- Prepended to scripts that settle, before _counted: what entries that had been settled before are taken out of.
-- Returns what a batch counts, without the shares of the entries at these places. They may count as superseded instead.
local function without(counts, shares, late)
  local counters, at = counts.add, {}
  for i = 1, #counters, 2 do at[counters[i]] = i + 1 end
  local function add(name, amount)
    if amount == 0 then return end -- such a field is not there
    if not at[name] then
      counters[#counters + 1], counters[#counters + 2] = name, '0'
      at[name] = #counters
    end
    counters[at[name]] = string.format('%.0f', counters[at[name]] + amount)
  end
  for _, place in ipairs(late) do
    local number, cancelled, latency, run, latency_bucket, wait_bucket = unpack(shares[place])
    local task = counts.tasks[string.format('%d', number)]
    if counts.superseded then add(task .. 'superseded', 1) end
    if cancelled then add(task .. 'cancelled', -1)
    else
      add(task .. 'done', -1)
      add(task .. 'latency_us', -latency)
      add(task .. 'run_us', -run)
      add(task .. string.format('l%d', latency_bucket), -1)
      add(task .. string.format('w%d', wait_bucket), -1)
    end
  end
  return counters
end
