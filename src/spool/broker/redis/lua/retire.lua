-- include: _keys, _records, _tally, _end, _lease
-- ARGV: now, incarnation, reason, detail. Returns {now, handed back, remaining}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local inc = ARGV[2]
if redis.call('HEXISTS', P .. 'retiring', inc) == 0 then bury(inc, ARGV[3], ARGV[4]) end
local done, left = retire_some(inc, 500)
if done > 0 then wake(8) end
return {now, done, left}
