-- include: _keys
-- KEYS[1] is "<prefix>:{spool}:". ARGV: now, verb, kind, then
-- load: cursor, limit. Returns {now, cursor, key, version, body, ...}, or for kind "queue" the names of the queues.
-- store: key, "1" for a body or "" to remove, body, ttl, if_version ("" any), other keys and bodies. Returns {now,
-- version}.
local verb, kind = ARGV[2], ARGV[3]
local rows, expiry = P .. 'doc:' .. kind, P .. 'docx:' .. kind

local expired = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 100)
for _, key in ipairs(expired) do
  redis.call('ZREM', expiry, key)
  redis.call('HDEL', rows, key)
end
local more = #expired == 100 -- which are to go with the next calls, and are not there any more either

local function gone(key)
  return more and (tonumber(redis.call('ZSCORE', expiry, key) or nil) or now + 1) <= now
end

local function read(key)
  local version, body = string.match(not gone(key) and redis.call('HGET', rows, key) or '', '^(%d+):(.*)$')
  return tonumber(version or 0), body
end

if verb == 'load' then
  local cursor, limit, reply = ARGV[4], tonumber(ARGV[5]), {now, ''}
  local keys = kind == 'queue' and redis.call('SMEMBERS', P .. 'queues') or redis.call('HKEYS', rows)
  table.sort(keys)
  for _, key in ipairs(keys) do
    if key > cursor and not gone(key) then
      if (#reply - 2) / 3 == limit then
        reply[2] = reply[#reply - 2]
        break
      end
      local version, body = read(key)
      reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = key, version, body or ''
    end
  end
  return reply
end

local key, ttl, wanted = ARGV[4], tonumber(ARGV[7]), tonumber(ARGV[8])
local version = read(key)
if wanted and wanted ~= version then
  return redis.error_reply('VERSION ' .. kind .. ' ' .. key .. ' has version ' .. version .. ', not ' .. wanted)
end
local function write(key, version, body)
  redis.call('HSET', rows, key, version .. ':' .. body)
  if ttl > 0 then redis.call('ZADD', expiry, now + ttl, key) else redis.call('ZREM', expiry, key) end
end

for at = 9, #ARGV, 2 do write(ARGV[at], read(ARGV[at]) + 1, ARGV[at + 1]) end
if ARGV[5] == '' then
  redis.call('ZREM', expiry, key)
  redis.call('HDEL', rows, key)
  return {now, 0}
end
write(key, version + 1, ARGV[6])
return {now, version + 1}
