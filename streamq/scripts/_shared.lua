-- Prepended to every script, after _trial. Needs no KEYS; every function is local.
if redis.replicate_commands then redis.replicate_commands() end -- Redis before 7 needs it for TIME
local call = redis.call

-- Scripts are not rolled back, and rights are checked command by command. So a script asks for the commands that it
-- will need before its first change. (XGROUP stands for XGROUP DELCONSUMER.)
local function ask(key, ...)
  for _, name in ipairs({...}) do
    local words = name == 'XGROUP' and {name, 'DELCONSUMER', key} or {name, key}
    if trials then ask_by_trial(words, key)
    elseif not redis.acl_check_cmd(unpack(words)) then
      error({err = "NOPERM this user may not run '" .. string.lower(name) .. "' on '" .. key .. "'"})
    end
  end
end

-- A first write that changes nothing: after it a server out of memory lets the other writes pass.
local function begin_settling(key)
  redis.pcall('XDEL', key, '0-0')
end

-- A word that is lost costs time: a channel that this user may not use refuses no step.
local function publish(channel, message)
  return redis.pcall('PUBLISH', channel, message)
end

-- Milliseconds as text, within what the server takes: a time, or a TTL that is at least 1.
local function whole(ms, least)
  return string.format('%.0f', math.max(least or 0, math.min(ms, 9e15)))
end

local time -- of this step: asked for once, before its first change

local function clock() -- milliseconds
  time = time or call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
