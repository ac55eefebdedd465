-- include: _keys, _records, _endings, _end
-- ARGV: now, incarnation, seq, metrics blob, then groups: kind (D done, C cancelled, R retried, L released, X died),
-- fence, ttl or delay, n, then n times id and ending (D, C) or tally (R, L, X). No id comes twice in one group.
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
-- One look for what few queues have.
local rare = call('EXISTS', P .. 'tally', P .. 'cancel', P .. 'noted') > 0
local tallied = rare and call('EXISTS', P .. 'tally') == 1
local wished = rare and call('EXISTS', P .. 'cancel') == 1

local function finish(ids, endings, kind, ttl)
  local life = keep(ids, endings, ttl)
  if rare then end_notes(ids, life) end
  redis.call('HDEL', P .. 'jobs', unpack(ids))
  if tallied then redis.call('HDEL', P .. 'tally', unpack(ids)) end
  if wished then redis.call('HDEL', P .. 'cancel', unpack(ids)) end
  count(kind == 'D' and 'done' or 'cancelled', #ids)
  remember(kind, ids)
  tell(ids, endings)
end

local function retell(ids, tallies)
  local pairs_ = {}
  for i, id in ipairs(ids) do pairs_[2 * i - 1], pairs_[2 * i] = id, tallies[i] end
  call('HSET', P .. 'tally', unpack(pairs_))
end

local function die(ids, tallies)
  retell(ids, tallies)
  local scored = {}
  for i, id in ipairs(ids) do scored[2 * i - 1], scored[2 * i] = now, id end
  redis.call('ZADD', P .. 'dead', unpack(scored))
  if wished then redis.call('HDEL', P .. 'cancel', unpack(ids)) end
  count('dead', #ids)
  tell(ids)
  prune_dead()
end

local function schedule(ids, tallies, kind, delay, entries)
  retell(ids, tallies)
  local lanes = {}
  for i, id in ipairs(ids) do
    local lane, place = string.match(entries[i], '^%d+:(%d):%d+:(.+)$')
    lanes[tonumber(lane)] = true
    if kind == 'L' and delay == 0 then
      redis.call('ZADD', LANES[tonumber(lane)], place, id)
    else
      redis.call('ZADD', P .. 'scheduled', now + delay, id)
    end
  end
  count(kind == 'R' and 'retried' or 'released', #ids)
  for lane = 0, 1 do
    if lanes[lane] then wake(lane) end
  end
end

local args, size = ARGV, #ARGV
while at <= size do
  local kind, fence, param, n = args[at], args[at + 1] .. ':', tonumber(args[at + 2]), tonumber(args[at + 3])
  local names, ids, values, entries, k = {}, {}, {}, {}, 0
  at = at + 4
  for i = 1, n do names[i] = args[at + 2 * i - 2] end
  local held = alive and call('HMGET', run, unpack(names)) or {}
  for i = 1, n do
    local entry = held[i]
    if entry and find(entry, fence, 1, true) == 1 then
      k = k + 1
      ids[k] = names[i]
      values[k] = args[at + 2 * i - 1]
      entries[k] = entry
    else
      refused[#refused + 1] = names[i]
    end
  end
  at = at + 2 * n
  if k > 0 then
    call('HDEL', run, unpack(ids))
    if kind == 'D' or kind == 'C' then finish(ids, values, kind, param)
    elseif kind == 'X' then die(ids, values)
    else schedule(ids, values, kind, param, entries) end
    accepted = accepted + k
  end
end

local reply = {now, accepted}
for _, id in ipairs(refused) do reply[#reply + 1] = id end
if alive then
  redis.call('HSET', row, 'settle', seq, 'reply', cmsgpack.pack(reply))
  if ARGV[4] ~= '' then
    local n = redis.call('HINCRBY', P .. 'meta', 'blobs', 1) -- so that a reader knows how many it has missed
    redis.call('XADD', P .. 'metrics', 'MAXLEN', '~', 10000, '*', 'b', ARGV[4], 'n', now .. '/' .. n)
    redis.call('PEXPIRE', P .. 'metrics', 7 * DAY)
  end
end
return reply
