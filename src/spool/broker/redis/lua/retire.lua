-- include: _keys, _records, _tally, _end, _lease
-- ARGV: now, incarnation, reason, detail, blamed ("" all, "1" the ids that follow), ids...
-- Returns {now, handed back, remaining}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local inc, reason, detail = ARGV[2], ARGV[3], ARGV[4]
local some, done = reason == 'crashed' and ARGV[5] == '1', 0
if redis.call('HEXISTS', P .. 'retiring', inc) == 0 then
  bury(inc, some and 'stopped' or reason, detail)
  for i = 6, some and #ARGV or 0 do
    local entry = redis.call('HGET', P .. 'run:' .. inc, ARGV[i])
    if entry then
      hand_back(ARGV[i], entry, inc, reason, detail)
      redis.call('HDEL', P .. 'run:' .. inc, ARGV[i])
      done = done + 1
    end
  end
end
local more, left = retire_some(inc, math.max(500 - done, 0))
done = done + more
if done > 0 then wake_lanes() end
return {now, done, left}
