-- Prepended to promote and tick: are these the fields of a message?
local function sound(fields)
  if type(fields) ~= 'table' or #fields < 2 or #fields > 4000 or #fields % 2 == 1 then return false end
  for _, part in ipairs(fields) do
    if type(part) ~= 'string' then return false end
  end
  return true
end

-- The fields of a delayed message. One that cannot be read becomes an entry that its consumer dead-letters.
local function fields_of(id, message)
  local fine, fields = pcall(cjson.decode, message or '[]')
  return fine and sound(fields) and fields or {'id', id, 'broken', message or ''}
end
