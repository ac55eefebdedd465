-- The usual beat: of incarnations that all run the same tasks, and have nothing to say but that they live. It is
-- answered before the functions are made which only others need; to make them would take as long again.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local function all_alike()
  if ARGV[2] ~= '' or #ARGV > 1000 or call('EXISTS', P .. 'cancel') == 1 then return end
  local incs, lease = {unpack(ARGV, 4)}, ARGV[3]
  local told, start = call('HMGET', P .. 'told', unpack(incs)), lease .. ':'
  for i = 1, #incs do
    if not told[i] or told[i] ~= told[1] then return end
  end
  local hash = string.sub(told[1], #start + 1)
  if start .. hash ~= told[1] or hash == '' then return end
  if hash ~= 'none' and call('PEXPIRE', P .. 'tasks:' .. hash, math.max(3600000, 10 * lease)) == 0 then return end
  return incs, tonumber(lease)
end

local incs, lease = all_alike()
if incs then
  tick(lease)
  local reply, renewed = {now, call('ZCARD', LANES[2])}, {}
  for i = 1, #incs do
    renewed[2 * i - 1], renewed[2 * i] = now + lease, incs[i]
    reply[i + 2] = call('HLEN', P .. 'run:' .. incs[i])
  end
  call('ZADD', P .. 'leases', unpack(renewed))
  return reply
end
