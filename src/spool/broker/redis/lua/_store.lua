-- Storing new jobs.

local added, soonest, roused = 0, nil, false

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

local function finish()
  count('enqueued', added)
  local first = soonest and tonumber(call('ZRANGE', P .. 'scheduled', 0, 0, 'WITHSCORES')[2])
  if roused or (first and first >= soonest) then wake(8) end
end
