-- Notes that the clock was seen; grants an amnesty when it jumped, or stood still, for more than lease/3.
-- Returns the time until which nothing is reaped, and whether the queue is paused.
local function tick(lease)
  local meta = call('HMGET', P .. 'meta', 'seen', 'amnesty', 'paused')
  local seen, amnesty = tonumber(meta[1]), tonumber(meta[2]) or 0
  if seen and math.abs(now - seen) > lease / 3 then
    amnesty = now + lease
    call('HSET', P .. 'meta', 'amnesty', amnesty)
    local far = call('ZRANGEBYSCORE', P .. 'leases', '(' .. amnesty, '+inf')
    for _, inc in ipairs(far) do call('ZADD', P .. 'leases', amnesty, inc) end
  end
  call('HSET', P .. 'meta', 'seen', now)
  return amnesty, meta[3]
end
