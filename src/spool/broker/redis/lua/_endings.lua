-- Endings lie in hashes, by the time at which they go: so a batch of them is one write, where a key with a TTL for each
-- would be half of what a settle costs. A hash takes the endings of an eighth to a quarter of their ttl, so that few have
-- to be asked for one, and none is kept more than a quarter longer than it was to be.

local ENDS = P .. 'ends:'
local buckets = nil

-- Returns for how long they are kept.
local function keep(ids, endings, ttl)
  if ttl <= 0 then return 0 end
  local grain = 2 ^ math.max(0, math.ceil(math.log(ttl / 8) / math.log(2)))
  local goes = (math.floor((now + ttl) / grain) + 1) * grain
  local name, pairs_ = string.format('%d', goes), {}
  for i = 1, #ids do
    pairs_[2 * i - 1] = ids[i]
    pairs_[2 * i] = endings[i]
  end
  call('HSET', ENDS .. name, unpack(pairs_))
  call('ZADD', P .. 'ends', goes, name)
  -- Only a fallback: a claim unlinks it in the background, while an expiring key is freed on the spot.
  call('PEXPIRE', ENDS .. name, goes - now + (ttl >= 10000 and 5000 or 0))
  buckets = nil
  return goes - now
end

local function each_bucket()
  buckets = buckets or call('ZRANGEBYSCORE', P .. 'ends', '(' .. now, '+inf')
  return buckets
end

local function ending_of(id)
  local names = each_bucket()
  for i = #names, 1, -1 do -- the latest first
    local ending = call('HGET', ENDS .. names[i], id)
    if ending then return ending end
  end
  return false
end

local function drop_ending(id)
  for _, name in ipairs(each_bucket()) do
    if call('HDEL', ENDS .. name, id) == 1 then return true end
  end
  return false
end

local function sweep_endings()
  for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'ends', '-inf', now, 'LIMIT', 0, 10)) do
    call('UNLINK', ENDS .. name)
    call('ZREM', P .. 'ends', name)
  end
end
