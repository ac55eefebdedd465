-- include: _keys, _end
-- ARGV: now, incarnation, seq, metrics blob, then groups: kind (D done, C cancelled, R retried, L released, X died),
-- fence, ttl or delay, n, then n times id and ending (D, C) or tally (R, L, X).
-- Returns {now, accepted, refused...}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local inc, seq = ARGV[2], tonumber(ARGV[3])
local row, run, at = P .. 'inc:' .. inc, P .. 'run:' .. inc, 5
local alive = redis.call('ZSCORE', P .. 'leases', inc)
local refused, accepted = {}, 0
if alive then
  local before = redis.call('HMGET', row, 'settle', 'reply')
  local last = tonumber(before[1] or 0)
  if seq == last and before[2] then return cmsgpack.unpack(before[2]) end
  alive = seq > last
end
local tallied = redis.call('EXISTS', P .. 'tally') == 1
local wished = redis.call('EXISTS', P .. 'cancel') == 1

local function finish(ids, endings, kind, ttl)
  for i, id in ipairs(ids) do keep(id, endings[i], ttl) end
  redis.call('HDEL', P .. 'jobs', unpack(ids))
  if tallied then redis.call('HDEL', P .. 'tally', unpack(ids)) end
  if wished then redis.call('HDEL', P .. 'cancel', unpack(ids)) end
  count(kind == 'D' and 'done' or 'cancelled', #ids)
  remember(kind, ids)
  tell(ids, endings)
end

local function prune_dead()
  local key = P .. 'dead'
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - 30 * DAY, 'LIMIT', 0, 100)
  local over = redis.call('ZCARD', key) - #old - 100000
  if over > 0 then
    for _, id in ipairs(redis.call('ZRANGE', key, #old, #old + math.min(over, 100) - 1)) do old[#old + 1] = id end
  end
  if #old == 0 then return end
  redis.call('ZREM', key, unpack(old))
  redis.call('HDEL', P .. 'jobs', unpack(old))
  redis.call('HDEL', P .. 'tally', unpack(old))
  count('pruned', #old)
end

local function die(ids, pairs_)
  redis.call('HSET', P .. 'tally', unpack(pairs_))
  local scored = {}
  for i, id in ipairs(ids) do scored[2 * i - 1], scored[2 * i] = now, id end
  redis.call('ZADD', P .. 'dead', unpack(scored))
  if wished then redis.call('HDEL', P .. 'cancel', unpack(ids)) end
  count('dead', #ids)
  tell(ids)
  prune_dead()
end

local function schedule(ids, pairs_, kind, delay, entries)
  redis.call('HSET', P .. 'tally', unpack(pairs_))
  for i, id in ipairs(ids) do
    if kind == 'L' and delay == 0 then
      local lane, place = string.match(entries[i], '^%d+:(%d):%d+:(.+)$')
      redis.call('ZADD', LANES[tonumber(lane)], place, id)
    else
      redis.call('ZADD', P .. 'scheduled', now + delay, id)
    end
  end
  count(kind == 'R' and 'retried' or 'released', #ids)
  wake(8)
end

while at <= #ARGV do
  local kind, fence, param, n = ARGV[at], ARGV[at + 1] .. ':', tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local names, ids, values, flat, entries = {}, {}, {}, {}, {}
  at = at + 4
  for i = 1, n do names[i] = ARGV[at + 2 * i - 2] end
  local held = alive and redis.call('HMGET', run, unpack(names)) or {}
  local seen = {}
  for i = 1, n do
    local id, entry = names[i], held[i]
    if entry and not seen[id] and string.find(entry, fence, 1, true) == 1 then
      local value, k = ARGV[at + 2 * i - 1], #ids + 1
      ids[k], values[k], entries[k], seen[id] = id, value, entry, true
      flat[2 * k - 1], flat[2 * k] = id, value
    else
      refused[#refused + 1] = id
    end
  end
  at = at + 2 * n
  if #ids > 0 then
    redis.call('HDEL', run, unpack(ids))
    if kind == 'D' or kind == 'C' then finish(ids, values, kind, param)
    elseif kind == 'X' then die(ids, flat)
    else schedule(ids, flat, kind, param, entries) end
    accepted = accepted + #ids
  end
end

local reply = {now, accepted}
for _, id in ipairs(refused) do reply[#reply + 1] = id end
if alive then
  redis.call('HSET', row, 'settle', seq, 'reply', cmsgpack.pack(reply))
  if ARGV[4] ~= '' then
    redis.call('XADD', P .. 'metrics', 'MAXLEN', '~', 10000, '*', 'b', ARGV[4])
    redis.call('PEXPIRE', P .. 'metrics', 7 * DAY)
  end
end
return reply
