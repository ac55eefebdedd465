-- include: _keys, _endings
-- ARGV: now, resend ("1" or ""), then groups: lane, priority, due kind ("" ready, "d" delay, "a" absolute), due,
-- fingerprint check ("1" or ""), n, then n times id, record, and fingerprint where checked.
-- Returns {now, {existing}, {conflicts}}.
local resend, at = ARGV[2] == '1', 3
local existing, conflicts, added, soonest, roused = {}, {}, 0, nil, false

-- The fingerprint under which an id is known to this queue, or nil; empty where it cannot be read.
local function known(id)
  local body = redis.call('HGET', P .. 'jobs', id)
  if body then return fields_of(body)[6] end
  local ending = ending_of(id)
  if not ending then return nil end
  local offset, fields = string.byte(ending, 1) == 0xdc and 3 or 1, {}
  for i = 1, 4 do
    local ok, after, element = pcall(cmsgpack.unpack_one, ending, offset)
    if not ok or after < 0 then return '' end
    offset, fields[i] = after, element
  end
  local readable = state_of(ending) and type(fields[4]) == 'string'
  return readable and fields[4] or ''
end

-- Of n jobs at args[at] the new ones: pairs id, record. The others are named to the caller.
local function new_ones(args, at, n, checked)
  local step, own, pairs_ = checked and 3 or 2, {}, {}
  for i = at, at + n * step - 1, step do
    local id, fingerprint = args[i], checked and args[i + 2] or ''
    local found = own[id] or known(id)
    if not found then
      own[id] = fingerprint
      pairs_[#pairs_ + 1] = id
      pairs_[#pairs_ + 1] = args[i + 1]
    elseif found == '' or fingerprint == '' or found == fingerprint then
      existing[#existing + 1] = id
    else
      conflicts[#conflicts + 1] = id
    end
  end
  return pairs_
end

-- Stores the jobs of pairs[at..at + 2n - 1] (id, record, ...) and gives them their places, or their time.
local function store(pairs_, at, n, lane, priority, due)
  local scored = {}
  if due <= now then
    local place = call('HINCRBY', P .. 'meta', 'seq', n) - n + priority * BAND
    for i = 1, n do
      scored[2 * i - 1] = place + i
      scored[2 * i] = pairs_[at + 2 * i - 2]
    end
    call('ZADD', LANES[lane], unpack(scored))
    roused = true
  else
    for i = 1, n do
      scored[2 * i - 1] = due
      scored[2 * i] = pairs_[at + 2 * i - 2]
    end
    call('ZADD', P .. 'scheduled', unpack(scored))
    soonest = math.min(soonest or due, due)
  end
  call('HSET', P .. 'jobs', unpack(pairs_, at, at + 2 * n - 1))
  added = added + n
end

local args, size = ARGV, #ARGV
while at <= size do
  local lane, priority, kind, due = tonumber(args[at]), tonumber(args[at + 1]), args[at + 2], tonumber(args[at + 3])
  local checked, n = args[at + 4] == '1', tonumber(args[at + 5])
  if kind == 'd' then due = now + due end
  at = at + 6
  if checked or resend then
    local pairs_ = new_ones(args, at, n, checked)
    if #pairs_ > 0 then store(pairs_, 1, #pairs_ / 2, lane, priority, due) end
  else
    store(args, at, n, lane, priority, due)
  end
  at = at + n * (checked and 3 or 2)
end
count('enqueued', added)
if soonest and tonumber(redis.call('ZRANGE', P .. 'scheduled', 0, 0, 'WITHSCORES')[2]) >= soonest then roused = true end
if roused then wake(8) end
return {now, existing, conflicts}
