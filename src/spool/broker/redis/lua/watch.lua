-- include: _keys
-- ARGV: now, cursor, limit. Returns {now, id, "<time>/<number>", blob, ...}.
local reply, from = {now}, ARGV[2] == '' and '-' or '(' .. ARGV[2]
for _, entry in ipairs(redis.call('XRANGE', P .. 'metrics', from, '+', 'COUNT', ARGV[3])) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][4] or ''
  reply[#reply + 1] = entry[2][2]
end
return reply
