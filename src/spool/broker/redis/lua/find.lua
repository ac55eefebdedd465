-- include: _keys, _records, _endings, _find
-- ARGV: now, state, limit, cursor parts (two, maybe empty). Returns {now, cursor, snapshots...}.
local state, limit, c1, c2 = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local reply, cursor = {now, ''}, ''

local function add(id, a, b)
  local body = redis.call('HGET', P .. 'jobs', id)
  if body then reply[#reply + 1] = snapshot(id, body, state, a, b) end
end

-- Places are unique in a queue, so a place is a cursor.
local function by_place(keys)
  local all = {}
  for _, key in ipairs(keys) do
    local flat = redis.call('ZRANGEBYSCORE', key, c1 == '' and '-inf' or '(' .. c1, '+inf', 'WITHSCORES', 'LIMIT', 0, limit + 1)
    for i = 1, #flat, 2 do all[#all + 1] = {tonumber(flat[i + 1]), flat[i], flat[i + 1]} end
  end
  table.sort(all, function(a, b) return a[1] < b[1] end)
  for i = 1, math.min(limit, #all) do add(all[i][2]) end
  if #all > limit then cursor = all[limit][3] end
end

-- By time and then id; the cursor is the last one's, which may have moved away since.
local function by_time(key, reverse)
  local range, rank_of = reverse and 'ZREVRANGE' or 'ZRANGE', reverse and 'ZREVRANK' or 'ZRANK'
  local from = 0
  if c1 ~= '' then
    local rank = redis.call('ZSCORE', key, c2) == c1 and redis.call(rank_of, key, c2)
    if rank then
      from = rank + 1
    else
      from = reverse and redis.call('ZCOUNT', key, '(' .. c1, '+inf') or redis.call('ZCOUNT', key, '-inf', '(' .. c1)
      local passed = true
      while passed do
        local one = redis.call(range, key, from, from, 'WITHSCORES')
        passed = one[1] and one[2] == c1 and ((reverse and one[1] > c2) or (not reverse and one[1] < c2))
        if passed then from = from + 1 end
      end
    end
  end
  local flat = redis.call(range, key, from, from + limit, 'WITHSCORES')
  for i = 1, math.min(2 * limit, #flat), 2 do add(flat[i], flat[i + 1]) end
  if #flat > 2 * limit then cursor = flat[2 * limit] .. ' ' .. flat[2 * limit - 1] end
end

local function running()
  for _, inc in ipairs(incarnations()) do
    if inc >= c1 then
      local entries, ids = {}, {}
      local flat = redis.call('HGETALL', P .. 'run:' .. inc)
      for i = 1, #flat, 2 do
        entries[flat[i]] = flat[i + 1]
        if inc > c1 or flat[i] > c2 then ids[#ids + 1] = flat[i] end
      end
      table.sort(ids)
      for _, id in ipairs(ids) do
        if #reply - 2 == limit then return end
        cursor = inc .. ' ' .. id
        add(id, inc, string.match(entries[id], '^%d+:%d:(%d+):'))
      end
    end
  end
  cursor = ''
end

local function parked()
  local names = redis.call('SMEMBERS', P .. 'parked')
  table.sort(names)
  for _, task in ipairs(names) do
    if task >= c1 then
      local from = task == c1 and '(' .. c2 or '-inf'
      local flat = redis.call('ZRANGEBYSCORE', P .. 'parked:' .. task, from, '+inf', 'WITHSCORES', 'LIMIT', 0, limit + 1)
      for i = 1, #flat, 2 do
        if #reply - 2 == limit then return end
        cursor = task .. ' ' .. flat[i + 1]
        add(flat[i])
      end
    end
  end
  cursor = ''
end

-- The index holds done and cancelled together; the cursor is the entry, and how many of its ids were read.
local function recent(kind)
  local key, read, listed = P .. 'recent', 0, {}
  local from, skip = c1 == '' and '+' or c1, tonumber(c2) or 0
  while true do
    local entries = redis.call('XREVRANGE', key, from, '-', 'COUNT', 20)
    for _, entry in ipairs(entries) do
      local ids = {}
      for line in string.gmatch(entry[2][4], '[^\n]+') do ids[#ids + 1] = line end
      for i = skip + 1, #ids do
        if #reply - 2 == limit or read == 1000 then return end
        cursor = entry[1] .. ' ' .. i
        local line = ids[#ids + 1 - i] -- the latest first
        if string.sub(line, 1, 1) == kind then
          read = read + 1
          local id = string.sub(line, 2)
          local ending = ending_of(id)
          local current = ending and (state_of(ending) or state) == state and not listed[id]
          if current and redis.call('HEXISTS', P .. 'jobs', id) == 0 then
            listed[id] = true
            reply[#reply + 1] = {id, state, '', '', ending, '', '', '', ''}
          end
        end
      end
      skip = 0
    end
    if #entries < 20 then
      cursor = ''
      return
    end
    from = '(' .. entries[20][1]
  end
end

if state == 'ready' then by_place({LANES[0], LANES[1]})
elseif state == 'suspect' then by_place({LANES[2]})
elseif state == 'scheduled' then by_time(P .. 'scheduled', false)
elseif state == 'dead' then by_time(P .. 'dead', true)
elseif state == 'running' then running()
elseif state == 'parked' then parked()
else recent(state == 'done' and 'D' or 'C') end
reply[2] = cursor
return reply
