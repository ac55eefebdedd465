-- Handing back what an incarnation held.

-- From here on the incarnation is refused everywhere; its jobs are still to be handed back.
local function bury(inc, reason, detail)
  redis.call('ZREM', P .. 'leases', inc)
  redis.call('ZREMRANGEBYSCORE', P .. 'gone', '-inf', now)
  redis.call('ZADD', P .. 'gone', now + DAY, inc)
  redis.call('HDEL', P .. 'told', inc)
  redis.call('DEL', P .. 'inc:' .. inc)
  if redis.call('EXISTS', P .. 'run:' .. inc) == 1 then
    redis.call('HSETNX', P .. 'retiring', inc, reason .. ':' .. detail)
  end
end

-- Hands one running job back, or lets it die. entry is its value in run:<inc>.
local function hand_back(id, entry, inc, reason, detail)
  local lane, started, place = string.match(entry, '^%d+:(%d):(%d+):(.+)$')
  local numbers, lines = read_tally(redis.call('HGET', P .. 'tally', id))
  local target, error_type, message = LANES[tonumber(lane)], '', ''
  numbers[2] = numbers[2] + 1
  if reason == 'lost' then numbers[5] = numbers[5] + 1 end
  if reason == 'crashed' then
    numbers[4] = numbers[4] + 1
    local most = tonumber(fields_of(redis.call('HGET', P .. 'jobs', id) or '')[5]) or 3
    if numbers[4] >= most then
      target, place, error_type, message = P .. 'dead', now, 'WorkerCrashed', detail
      count('dead', 1)
      redis.call('HDEL', P .. 'cancel', id)
      tell({id})
    elseif numbers[4] >= 2 then
      target = LANES[2]
    end
  end
  count(reason, 1)
  local line = attempt_line(numbers[2], reason, started, inc, error_type, message)
  redis.call('HSET', P .. 'tally', id, write_tally(numbers, lines, line))
  redis.call('ZADD', target, place, id)
end

-- Goes on handing back what a retired incarnation holds, at most so many jobs.
-- Returns how many it handed back, and how many are left.
local function retire_some(inc, most)
  local run, done = P .. 'run:' .. inc, 0
  local reason, detail = string.match(redis.call('HGET', P .. 'retiring', inc) or '', '^(%a+):(.*)$')
  local cursor = reason and '' or '0'
  -- Earlier calls have emptied the first buckets of a large hash, and one HSCAN gives up before it is past them.
  while cursor ~= '0' and done < most do
    local page = redis.call('HSCAN', run, cursor == '' and '0' or cursor, 'COUNT', most)
    local flat = page[2]
    for i = 1, #flat, 2 do
      if done == most then break end
      hand_back(flat[i], flat[i + 1], inc, reason, detail)
      redis.call('HDEL', run, flat[i])
      done = done + 1
    end
    cursor = page[1]
  end
  local left = redis.call('HLEN', run)
  if left == 0 then redis.call('HDEL', P .. 'retiring', inc) end
  return done, left
end
