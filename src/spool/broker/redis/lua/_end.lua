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

-- Takes a job that has not started out of whatever it waits in; returns whether it was there.
local function unqueue(id, body)
  for lane = 0, 2 do
    if redis.call('ZREM', LANES[lane], id) == 1 then return true end
  end
  if redis.call('ZREM', P .. 'scheduled', id) == 1 then return true end
  local task = task_of(body)
  if task and redis.call('ZREM', P .. 'parked:' .. task, id) == 1 then
    if redis.call('EXISTS', P .. 'parked:' .. task) == 0 then redis.call('SREM', P .. 'parked', task) end
    return true
  end
  return false
end
