-- include: _keys, _records, _tally, _end, _lease
-- ARGV: now, then for each heartbeat: incarnation, lease, task hash ("" none given), n task names, names...,
-- held count ("" unknown), claim seq, n held ids ("" none given), ids...
-- Returns {now, suspects, per heartbeat {lost, {id to cancel, reason, ...}, held, {unknown}, tasks}}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local reply, at, ticked = {now, 0}, 2, false
local wishes = redis.call('EXISTS', P .. 'cancel') == 1 and redis.call('HKEYS', P .. 'cancel') or {}

local function reconcile(inc, seq, ids)
  local run, mine, unknown, repaired = P .. 'run:' .. inc, {}, {}, 0
  for _, id in ipairs(ids) do
    mine[id] = true
    if redis.call('HEXISTS', run, id) == 0 then unknown[#unknown + 1] = id end
  end
  local flat = redis.call('HGETALL', run)
  for i = 1, #flat, 2 do
    local claimed = tonumber(string.match(flat[i + 1], '^(%d+):'))
    if not mine[flat[i]] and claimed <= seq then
      hand_back(flat[i], flat[i + 1], inc, 'released', '')
      redis.call('HDEL', run, flat[i])
      repaired = repaired + 1
    end
  end
  if repaired > 0 then wake(8) end
  return unknown
end

local function beat(inc, lease, hash, names, seq, ids)
  if redis.call('ZSCORE', P .. 'gone', inc) then return {1, {}, 0, {}, 0} end
  if not ticked then
    ticked = true
    tick(lease)
  end
  local row, unknown, cancel = P .. 'inc:' .. inc, {}, {}
  redis.call('ZADD', P .. 'leases', now + lease, inc)
  redis.call('HSET', row, 'lease', lease)
  if hash ~= '' then
    redis.call('HSET', row, 'tasks', hash)
    for first = 1, #names, 1000 do
      redis.call('SADD', P .. 'tasks:' .. hash, unpack(names, first, math.min(first + 999, #names)))
    end
  end
  hash = redis.call('HGET', row, 'tasks')
  local stated = hash and (redis.call('PEXPIRE', P .. 'tasks:' .. hash, math.max(3600000, 10 * lease)) == 1 or hash == 'none')
  if ids then unknown = reconcile(inc, seq, ids) end
  if #wishes > 0 then
    local entries = hmget(P .. 'run:' .. inc, wishes)
    for i, id in ipairs(wishes) do
      if entries[i] then
        cancel[#cancel + 1] = id
        cancel[#cancel + 1] = redis.call('HGET', P .. 'cancel', id)
      end
    end
  end
  return {0, cancel, redis.call('HLEN', P .. 'run:' .. inc), unknown, stated and 0 or 1}
end

local function take(n)
  local list = {}
  for i = 1, n do list[i] = ARGV[at + i - 1] end
  at = at + n
  return list
end

while at <= #ARGV do
  local inc, lease, hash, n = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  at = at + 4
  local names = take(n)
  local seq, held = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local ids = held and take(held)
  reply[#reply + 1] = beat(inc, lease, hash, names, seq, ids)
end
reply[2] = redis.call('ZCARD', LANES[2]) -- a forgotten one may have come back just now
return reply
