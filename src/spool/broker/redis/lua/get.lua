-- include: _keys, _records, _endings, _find
-- ARGV: now, id. Returns false, or what snapshot() returns.
local id = ARGV[2]
local body = redis.call('HGET', P .. 'jobs', id)
if not body then
  local ending = ending_of(id)
  return ending and {id, 'ended', '', '', ending, '', '', '', ''}
end
return snapshot(id, body, locate(id, body))
