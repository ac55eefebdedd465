-- include: _keys, _endings
-- ARGV: now, channel, ids... Registers the channel with each job that has not ended; the others come back at once.
-- Returns {id, "ended" and its ending, or "look" (dead, or not known) and "", ...}.
local channel, reply, waiting = ARGV[2], {}, false
local key = P .. 'waiters'
for i = 3, #ARGV do
  local id = ARGV[i]
  local ending = redis.call('HEXISTS', P .. 'jobs', id) == 0 and (ending_of(id) or '')
  if ending or redis.call('ZSCORE', P .. 'dead', id) then
    reply[#reply + 1] = id
    reply[#reply + 1] = ending and ending ~= '' and 'ended' or 'look'
    reply[#reply + 1] = ending or ''
  else
    local channels = redis.call('HGET', key, id)
    if not channels then
      redis.call('HSET', key, id, channel)
    elseif not string.find(' ' .. channels .. ' ', ' ' .. channel .. ' ', 1, true) then
      redis.call('HSET', key, id, channels .. ' ' .. channel)
    end
    waiting = true
  end
end
if waiting then redis.call('PEXPIRE', key, 60000) end
return reply
