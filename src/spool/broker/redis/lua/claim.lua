-- include: _keys, _tick, _records, _tally, _endings, _end, _lease
-- ARGV: now, incarnation, seq, main slots, process slots, kind ("trial", "even" or ""), unroutable after (ms; 0 never).
-- Returns {now, next_at or "", {ids}, {records}, {id, tally, ...}, 1 if cut to a share else ""}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local inc, seq = ARGV[2], tonumber(ARGV[3])
local row, run = P .. 'inc:' .. inc, P .. 'run:' .. inc
local ends = tonumber(redis.call('ZSCORE', P .. 'leases', inc) or nil)
local lease, hash = string.match(redis.call('HGET', P .. 'told', inc) or '', '^(%d+):(.*)$')
if not ends or not lease then return redis.error_reply('LEASELOST incarnation ' .. inc .. ' holds no lease') end
local amnesty, paused = tick(tonumber(lease))
-- An amnesty may have cut the lease, but to a time that is yet to come.
if ends <= now then return redis.error_reply('LEASELOST the lease of incarnation ' .. inc .. ' ran out') end

local ids, bodies, tallies, rare, cut, moved = {}, {}, {}, true, '', false

local function answer(next_at)
  if rare and #ids > 0 and redis.call('EXISTS', P .. 'tally') == 1 then
    for i, tally in ipairs(redis.call('HMGET', P .. 'tally', unpack(ids))) do
      if tally then
        tallies[#tallies + 1] = ids[i]
        tallies[#tallies + 1] = tally
      end
    end
  end
  return {now, next_at or '', ids, bodies, tallies, cut}
end

local last = tonumber(redis.call('HGET', row, 'claim') or 0)
if seq < last then return answer() end
if seq == last then
  local flat, again = redis.call('HGETALL', run), {}
  for i = 1, #flat, 2 do
    local claimed, place = string.match(flat[i + 1], '^(%d+):%d:%d+:(.+)$')
    if tonumber(claimed) == seq then again[#again + 1] = {tonumber(place), flat[i]} end
  end
  table.sort(again, function(a, b) return a[1] < b[1] end)
  for i, job in ipairs(again) do
    ids[i], bodies[i] = job[2], redis.call('HGET', P .. 'jobs', job[2]) or ''
  end
  return answer(now)
end
redis.call('HSET', row, 'claim', seq)

local function reap()
  moved = true
  if now >= amnesty then
    for _, expired in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, 4)) do
      bury(expired, 'lost', '')
    end
  end
  local budget = 500
  for _, retired in ipairs(redis.call('HKEYS', P .. 'retiring')) do
    if budget > 0 then budget = budget - retire_some(retired, budget) end
  end
end

local function promote()
  local due = redis.call('ZRANGEBYSCORE', P .. 'scheduled', '-inf', now, 'LIMIT', 0, 500)
  if #due == 0 then return end
  moved = true
  local jobs, lost = {}, 0
  for i, body in ipairs(redis.call('HMGET', P .. 'jobs', unpack(due))) do
    if body then
      local _, priority, lane = head_of(body)
      jobs[#jobs + 1] = {lane, priority, due[i]}
    else
      lost = lost + 1
    end
  end
  redis.call('ZREM', P .. 'scheduled', unpack(due))
  if #jobs > 0 then append(jobs) end
  count('repairs', lost)
end

local tasks = P .. 'tasks:' .. hash

local function unpark()
  local budget = 500
  for _, task in ipairs(redis.call('SINTER', P .. 'parked', tasks)) do
    local key = P .. 'parked:' .. task
    local flat = budget > 0 and redis.call('ZPOPMIN', key, budget) or {}
    for i = 1, #flat, 2 do
      local _, _, lane = head_of(redis.call('HGET', P .. 'jobs', flat[i]) or '')
      local place = tonumber(flat[i + 1])
      if place < 0 then lane, place = 2, -place end
      redis.call('ZADD', LANES[lane], place, flat[i])
      redis.call('ZREM', P .. 'unroutable', flat[i])
    end
    budget, moved = budget - #flat / 2, moved or #flat > 0
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', P .. 'parked', task) end
  end
end

local function bury_unroutable(after)
  local flat = redis.call('ZRANGEBYSCORE', P .. 'unroutable', '-inf', '(' .. now - after, 'WITHSCORES', 'LIMIT', 0, 100)
  -- While there are more that this incarnation knows than one call unparks, the oldest may be among those.
  if #flat == 0 or #redis.call('SINTER', P .. 'parked', tasks) > 0 then return end
  local dead = {}
  for i = 1, #flat, 2 do
    local id, since = flat[i], flat[i + 1]
    local body = redis.call('HGET', P .. 'jobs', id) or ''
    if leave_parked(id, body) then
      local numbers, lines = read_tally(redis.call('HGET', P .. 'tally', id))
      local message = string.format('no worker knew the task %s for %d s', task_of(body), math.floor((now - since) / 1000))
      local line = attempt_line(numbers[2], 'died', since, inc, 'Unroutable', message)
      redis.call('HSET', P .. 'tally', id, write_tally(numbers, lines, line))
      redis.call('ZADD', P .. 'dead', now, id)
      dead[#dead + 1] = id
    else -- damaged: it must not be in the way of the others
      redis.call('ZREM', P .. 'unroutable', id)
    end
  end
  if #dead == 0 then return end
  redis.call('HDEL', P .. 'cancel', unpack(dead))
  count('dead', #dead)
  tell(dead)
  prune_dead()
end

-- Most claims have nothing to keep in order, and find that out with a look at what comes first.
local function first_leases()
  return call('ZRANGE', P .. 'leases', 0, 1, 'WITHSCORES')
end

local function first_due()
  return tonumber(call('ZRANGE', P .. 'scheduled', 0, 0, 'WITHSCORES')[2])
end

local leases = first_leases()
rare = call('EXISTS', P .. 'retiring', P .. 'parked', P .. 'tally') > 0
if tonumber(leases[2]) <= now or (rare and call('EXISTS', P .. 'retiring') == 1) then
  reap()
  leases, rare = first_leases(), true
end
if seq % 16 == 1 then sweep_endings() end
local due = first_due()
if due and due <= now then
  promote()
  due = first_due()
end
if rare and call('EXISTS', P .. 'parked') == 1 then
  local after = tonumber(ARGV[7])
  unpark()
  if after > 0 then bury_unroutable(after) end
end

local lapsed = tonumber(leases[2]) <= now -- which only an amnesty leaves
local live = lapsed and call('ZCOUNT', P .. 'leases', '(' .. now, '+inf') or call('ZCARD', P .. 'leases')
local knows, repairs, taken = {}, 0, 0
local head = nil -- how records of the last task begin: most jobs of a claim are of one task

-- A fair part of what is ready: an even split of it, or what is missing to an even split of all that is ready or runs.
local function share(ready, lane, most)
  local part, even = math.max(1, math.ceil(ready / live)), ARGV[6] == 'even'
  if lane > 0 or live == 1 or live > 64 or (part >= most and not even) then return part end
  local running = 0
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '(' .. now, '+inf')) do
    running = running + redis.call('HLEN', P .. 'run:' .. other)
  end
  return math.max(even and 0 or part, math.ceil((ready + running) / live) - redis.call('HLEN', run))
end

-- Whether a job is to be handed out; if not, it is parked or dropped.
local function wanted(id, body, lane, place)
  if not body then
    repairs = repairs + 1
    return false
  end
  local task, at = task_of(body)
  if not task then return true end
  if knows[task] == nil then knows[task] = call('SISMEMBER', tasks, task) == 1 end
  if knows[task] then
    head = string.sub(body, 1, at)
    return true
  end
  call('SADD', P .. 'parked', task)
  call('ZADD', P .. 'parked:' .. task, lane == 2 and -tonumber(place) or place, id)
  call('ZADD', P .. 'unroutable', now, id)
  return false
end

local function take(lane, most)
  local entry, held, size, seen = seq .. ':' .. lane .. ':' .. now .. ':', {}, 0, 0
  while most > 0 and seen < 1000 do
    local flat = call('ZPOPMIN', LANES[lane], most)
    local n = #flat / 2
    if n == 0 then break end
    local popped = {}
    for i = 1, n do popped[i] = flat[2 * i - 1] end
    local found = call('HMGET', P .. 'jobs', unpack(popped))
    for i = 1, n do
      local id, body = popped[i], found[i]
      if (body and head and find(body, head, 1, true) == 1) or wanted(id, body, lane, flat[2 * i]) then
        taken = taken + 1
        ids[taken] = id
        bodies[taken] = body
        held[size + 1] = id
        held[size + 2] = entry .. flat[2 * i]
        size = size + 2
        most = most - 1
      end
    end
    seen = seen + n
  end
  if size > 0 then call('HSET', run, unpack(held)) end
  return seen
end

local slots = {[0] = tonumber(ARGV[4]), [1] = tonumber(ARGV[5]), [2] = 0}
if ARGV[6] == 'trial' then slots = {[0] = 0, [1] = 0, [2] = 1} end
local more = false
if not paused then
  for lane = 0, 2 do
    if slots[lane] > 0 then
      local most = math.min(slots[lane], 1000)
      local ready, popped = call('ZCARD', LANES[lane]), 0
      if lane < 2 and ready > 0 then
        local part = share(ready, lane, most)
        if part < most and part < ready then cut = 1 end
        most = math.min(most, part)
      end
      if ready > 0 then popped = take(lane, most) end
      if popped < ready then
        more = true
        if lane < 2 and live > 1 then wake(lane) end
      end
    elseif moved and lane < 2 and call('EXISTS', LANES[lane]) == 1 then
      wake(lane)
    end
  end
end
count('repairs', repairs)

-- A claim that was cut to its share comes again when the others had the time to take theirs.
if more then return answer(cut == 1 and now + 50 or now) end
local other = leases[1] ~= inc and leases[2] or leases[4]
if other then
  other = math.max(tonumber(other), amnesty)
  due = math.min(due or other, other)
end
return answer(due)
