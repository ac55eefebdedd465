-- include: _keys, _tick, _quick, _records, _tally, _end, _lease
-- ARGV: now, then for each heartbeat: incarnation, lease, task hash ("" none given), n task names, names...,
-- claim seq, n held ids ("" none given), ids...
-- Or, where all have one lease, no names and no ids: now, "", lease, incarnations...
-- Returns {now, suspects, per heartbeat {lost, {id to cancel, reason, ...}, held, {unknown}, tasks} or just held}.
local reply = {now, 0}
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
  if repaired > 0 then wake_lanes() end
  return unknown
end

local renewed, kept = {}, {}

-- Whether the store knows the names of these tasks, and will for a while; asked once for all who have the same.
local function knows(hash, lease)
  if kept[hash] == nil then
    local ms = math.max(3600000, 10 * lease)
    kept[hash] = hash == 'none' or redis.call('PEXPIRE', P .. 'tasks:' .. hash, ms) == 1
  end
  return kept[hash]
end

local function learn(inc, lease, hash, names)
  redis.call('HSET', P .. 'told', inc, lease .. ':' .. hash)
  for first = 1, #names, 1000 do
    redis.call('SADD', P .. 'tasks:' .. hash, unpack(names, first, math.min(first + 999, #names)))
  end
end

local function wanted(inc)
  local entries, cancel = hmget(P .. 'run:' .. inc, wishes), {}
  for i, id in ipairs(wishes) do
    if entries[i] then
      cancel[#cancel + 1] = id
      cancel[#cancel + 1] = redis.call('HGET', P .. 'cancel', id)
    end
  end
  return cancel
end

-- told: what an earlier beat of the incarnation said, which is gone when it is retired.
local function beat(told, inc, lease, hash, names, seq, ids)
  if not told and redis.call('ZSCORE', P .. 'gone', inc) then return {1, {}, 0, {}, 0} end
  if not renewed[1] then tick(lease) end
  renewed[#renewed + 1], renewed[#renewed + 2] = now + lease, inc
  local before, known = string.match(told or '', '^(%d+):(.*)$')
  if hash == '' then hash = known or '' end
  if hash ~= known or tonumber(before) ~= lease then learn(inc, lease, hash, names) end
  local stated = hash ~= '' and knows(hash, lease)
  local unknown = ids and reconcile(inc, seq, ids) or {}
  local cancel = #wishes > 0 and wanted(inc) or {}
  local held = redis.call('HLEN', P .. 'run:' .. inc)
  if stated and #cancel == 0 and #unknown == 0 then return held end -- which is all there is to say, as a rule
  return {0, cancel, held, unknown, stated and 0 or 1}
end

local at, incs, beats = 2, {}, {}

local function take(n)
  local list = {}
  for i = 1, n do list[i] = ARGV[at + i - 1] end
  at = at + n
  return list
end

if ARGV[2] == '' then
  for i = 4, #ARGV do
    incs[i - 3] = ARGV[i]
    beats[i - 3] = {ARGV[i], tonumber(ARGV[3]), '', {}}
  end
  at = #ARGV + 1
end
while at <= #ARGV do
  local inc, lease, hash, n = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  at = at + 4
  local names = take(n)
  local seq, held = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  at = at + 2
  incs[#incs + 1] = inc
  beats[#beats + 1] = {inc, lease, hash, names, seq, held and take(held)}
end
local told = hmget(P .. 'told', incs)
for i, each in ipairs(beats) do reply[#reply + 1] = beat(told[i], unpack(each, 1, 6)) end
for first = 1, #renewed, 1000 do
  redis.call('ZADD', P .. 'leases', unpack(renewed, first, math.min(first + 999, #renewed)))
end
reply[2] = redis.call('ZCARD', LANES[2]) -- a forgotten one may have come back just now
return reply
