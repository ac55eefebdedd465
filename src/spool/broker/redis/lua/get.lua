-- include: _keys, _records, _endings, _find
-- ARGV: now, id. Returns false, or what snapshot() returns, and after that, if it noted something, the progress, how
-- many lines were dropped, and the lines.
local id = ARGV[2]

local function with_notes(found)
  local key = P .. 'note:' .. id
  local low, high, dropped = string.match(call('HGET', key, 'head') or '', '^(%d+) (%d+) %d+ (%d+) ')
  if not low then return found end
  found[10], found[11] = call('HGET', key, 'progress') or '', tonumber(dropped)
  local names = {}
  for number = low, high - 1 do names[#names + 1] = string.format('%d', number) end
  for i, line in ipairs(#names > 0 and call('HMGET', key, unpack(names)) or {}) do found[11 + i] = line or '' end
  return found
end

local body = redis.call('HGET', P .. 'jobs', id)
if not body then
  local ending = ending_of(id)
  return ending and with_notes({id, 'ended', '', '', ending, '', '', '', ''})
end
local found = snapshot(id, body, locate(id, body))
if not found or call('SISMEMBER', P .. 'noted', id) == 0 then return found end
return with_notes(found)
