-- include: _keys, _records, _find
-- ARGV: now. Returns {now, {ready by priority}, scheduled, {task, n, ...}, suspect, running, dead, workers, paused, {name, n, ...},
-- sequence, {place of the first by priority, "" for none}}.
local ready, heads, parked, running = {}, {}, {}, 0
for priority = 0, 4 do
  local low, high = priority * BAND, '(' .. string.format('%.0f', (priority + 1) * BAND)
  ready[priority + 1] = redis.call('ZCOUNT', LANES[0], low, high) + redis.call('ZCOUNT', LANES[1], low, high)
  heads[priority + 1] = ''
  for lane = 0, ready[priority + 1] > 0 and 1 or -1 do
    local place = redis.call('ZRANGEBYSCORE', LANES[lane], low, high, 'WITHSCORES', 'LIMIT', 0, 1)[2]
    local head = heads[priority + 1]
    if place and (head == '' or tonumber(place) < tonumber(head)) then heads[priority + 1] = place end
  end
end
for _, task in ipairs(redis.call('SMEMBERS', P .. 'parked')) do
  parked[#parked + 1] = task
  parked[#parked + 1] = redis.call('ZCARD', P .. 'parked:' .. task)
end
for _, inc in ipairs(incarnations()) do running = running + redis.call('HLEN', P .. 'run:' .. inc) end
return {
  now, ready, redis.call('ZCARD', P .. 'scheduled'), parked, redis.call('ZCARD', LANES[2]), running,
  redis.call('ZCARD', P .. 'dead'), redis.call('ZCOUNT', P .. 'leases', '(' .. now, '+inf'),
  redis.call('HEXISTS', P .. 'meta', 'paused'), redis.call('HGETALL', P .. 'totals'),
  tonumber(redis.call('HGET', P .. 'meta', 'seq') or 0), heads,
}
