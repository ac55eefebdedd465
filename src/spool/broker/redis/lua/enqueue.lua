-- include: _keys
-- ARGV: now, resend ("1" or ""), then groups: lane, priority, due kind ("" ready, "d" delay, "a" absolute), due,
-- fingerprint check ("1" or ""), n, then n times id, record, and fingerprint where checked.
-- Returns {now, {existing}, {conflicts}}.
local resend, at = ARGV[2] == '1', 3
local existing, conflicts, added, soonest, roused = {}, {}, 0, nil, false

-- The fingerprint under which an id is known to this queue, or nil; empty where it cannot be read.
local function known(id)
  local body = redis.call('HGET', P .. 'jobs', id)
  if body then return fields_of(body)[6] end
  local ending = redis.call('GET', P .. 'end:' .. id)
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

while at <= #ARGV do
  local lane, priority, kind, due = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  local checked, n = ARGV[at + 4] == '1', tonumber(ARGV[at + 5])
  local step, ids, bodies, own = checked and 3 or 2, {}, {}, {}
  at = at + 6
  for i = at, at + n * step - 1, step do
    local id, found = ARGV[i], nil
    if checked or resend then
      found = own[id] or known(id)
    end
    if not found then
      if checked or resend then own[id] = checked and ARGV[i + 2] or '' end
      ids[#ids + 1] = id
      bodies[#bodies + 1] = id
      bodies[#bodies + 1] = ARGV[i + 1]
    elseif not checked or found == '' or ARGV[i + 2] == '' or found == ARGV[i + 2] then
      existing[#existing + 1] = id
    else
      conflicts[#conflicts + 1] = id
    end
  end
  at = at + n * step
  if #ids > 0 then
    if kind == 'd' then due = now + due end
    local args = {}
    if kind == '' or due <= now then
      local first = redis.call('HINCRBY', P .. 'meta', 'seq', #ids) - #ids + priority * BAND
      for i, id in ipairs(ids) do args[2 * i - 1], args[2 * i] = first + i, id end
      redis.call('ZADD', LANES[lane], unpack(args))
      roused = true
    else
      for i, id in ipairs(ids) do args[2 * i - 1], args[2 * i] = due, id end
      redis.call('ZADD', P .. 'scheduled', unpack(args))
      soonest = math.min(soonest or due, due)
    end
    redis.call('HSET', P .. 'jobs', unpack(bodies))
    added = added + #ids
  end
end
count('enqueued', added)
if soonest and tonumber(redis.call('ZRANGE', P .. 'scheduled', 0, 0, 'WITHSCORES')[2]) >= soonest then roused = true end
if roused then wake(8) end
return {now, existing, conflicts}
