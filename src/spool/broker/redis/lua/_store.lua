-- Storing new jobs.

local added, soonest, roused = 0, {}, {}

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
    roused[lane] = true
  else
    for i = 1, n do
      scored[2 * i - 1] = due
      scored[2 * i] = pairs_[at + 2 * i - 2]
    end
    call('ZADD', P .. 'scheduled', unpack(scored))
    soonest[lane] = math.min(soonest[lane] or due, due)
  end
  call('HSET', P .. 'jobs', unpack(pairs_, at, at + 2 * n - 1))
  added = added + n
end

local function finish()
  count('enqueued', added)
  local first = next(soonest) and tonumber(call('ZRANGE', P .. 'scheduled', 0, 0, 'WITHSCORES')[2])
  for lane = 0, 1 do
    if roused[lane] or (first and soonest[lane] and first >= soonest[lane]) then wake(lane) end
  end
end
