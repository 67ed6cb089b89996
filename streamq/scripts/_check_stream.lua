-- Prepended to scripts that call check_stream, or carry_out.
-- Fail if a message could not be added. The last million ids of a stream count as used up: one step may add many.
local looked_at = {}
local function check_stream(stream)
  if looked_at[stream] then return end
  looked_at[stream] = true
  ask(stream, 'XADD')
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then call('XLEN', stream) end -- a key of another type refuses
  for i = 1, info.err and 0 or #info, 2 do
    if info[i] == 'last-generated-id' and string.find(info[i + 1], '^18446744073709551615%-1844674407370[89]%d%d%d%d%d%d$') then
      error({err = "ERR the stream '" .. stream .. "' has exhausted its ids"})
    end
  end
end
