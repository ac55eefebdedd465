-- One job with a fresh id that is ready at once: what a single call of enqueue sends. On its own, without _keys and
-- _store (where the layout is): to make what they define would take half as long again as all of this.
-- ARGV: now, lane, priority, id, record. Returns now.
local P, call, id = KEYS[1], redis.call, ARGV[4]
local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local lane = ARGV[2] == '1' and ':1' or ''
local place = ARGV[3] * 1125899906842624 + call('HINCRBY', P .. 'meta', 'seq', 1)
call('ZADD', P .. 'ready' .. lane, place, id)
call('HSET', P .. 'jobs', id, ARGV[5])
call('HINCRBY', P .. 'totals', 'enqueued', 1)
if call('RPUSH', P .. 'wake' .. lane, '1') > 8 then call('LPOP', P .. 'wake' .. lane) end
return now
