-- What happens around the end of jobs: waiters are told, the index of recent endings grows.

local function tell(ids, endings)
  if redis.call('EXISTS', P .. 'waiters') == 0 then return end
  local channels = redis.call('HMGET', P .. 'waiters', unpack(ids))
  for i, id in ipairs(ids) do
    if channels[i] then
      redis.call('HDEL', P .. 'waiters', id)
      for channel in string.gmatch(channels[i], '%S+') do
        redis.call('PUBLISH', channel, P .. '\n' .. id .. '\n' .. (endings and endings[i] or ''))
      end
    end
  end
end

local function remember(kind, ids)
  if #ids == 0 then return end
  local key, most = P .. 'recent', 10000
  redis.call('XADD', key, '*', 'n', #ids, 'ids', kind .. table.concat(ids, '\n' .. kind))
  local total = redis.call('HINCRBY', P .. 'meta', 'recent', #ids)
  while total > most do
    local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    local n = first and tonumber(first[2][2]) or total
    if first and total - n < most then break end
    if first then redis.call('XDEL', key, first[1]) end
    total = redis.call('HINCRBY', P .. 'meta', 'recent', -n)
  end
  redis.call('PEXPIRE', key, 7 * DAY)
end

-- What ended jobs noted is kept for so long as their endings, or goes with them.
local function end_notes(ids, life)
  if call('EXISTS', P .. 'noted') == 0 then return end
  for i, noted in ipairs(call('SMISMEMBER', P .. 'noted', unpack(ids))) do
    if noted == 1 then
      call('SREM', P .. 'noted', ids[i])
      if life > 0 then
        call('PEXPIRE', P .. 'note:' .. ids[i], life)
      else
        call('UNLINK', P .. 'note:' .. ids[i])
      end
    end
  end
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
  end_notes(old, 0)
  count('pruned', #old)
end

-- Takes a parked job out of where it waits; returns whether it was there.
local function leave_parked(id, body)
  local task = task_of(body)
  if not task or redis.call('ZREM', P .. 'parked:' .. task, id) == 0 then return false end
  redis.call('ZREM', P .. 'unroutable', id)
  if redis.call('EXISTS', P .. 'parked:' .. task) == 0 then redis.call('SREM', P .. 'parked', task) end
  return true
end

-- Takes a job that has not started out of whatever it waits in; returns whether it was there.
local function unqueue(id, body)
  for lane = 0, 2 do
    if redis.call('ZREM', LANES[lane], id) == 1 then return true end
  end
  return redis.call('ZREM', P .. 'scheduled', id) == 1 or leave_parked(id, body)
end
