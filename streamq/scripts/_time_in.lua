-- Prepended to scripts that read times (ms) which they wrote before.
-- The time in this text; 0 if it is none, or one that nobody here wrote: negative, or more than 3 years ahead.
local function time_in(text, now)
  local time = tonumber(text or 0) or 0
  return time >= 0 and time <= now + 1e11 and time or 0
end

local function text(value)
  return value and string.format('%.17g', value) or ''
end
