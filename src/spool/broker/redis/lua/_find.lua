-- Looking at jobs: where one is, and what is known of it.

local function incarnations()
  local all = redis.call('ZRANGE', P .. 'leases', 0, -1)
  for _, inc in ipairs(redis.call('HKEYS', P .. 'retiring')) do all[#all + 1] = inc end
  table.sort(all)
  return all
end

-- state, and what belongs to it: due time, time of death, or incarnation and start.
local function locate(id, body)
  local score = redis.call('ZSCORE', P .. 'scheduled', id)
  if score then return 'scheduled', score end
  for lane = 0, 2 do
    if redis.call('ZSCORE', LANES[lane], id) then return lane == 2 and 'suspect' or 'ready' end
  end
  score = redis.call('ZSCORE', P .. 'dead', id)
  if score then return 'dead', score end
  local task = task_of(body)
  if task and redis.call('ZSCORE', P .. 'parked:' .. task, id) then return 'parked' end
  for _, inc in ipairs(incarnations()) do
    local entry = redis.call('HGET', P .. 'run:' .. inc, id)
    if entry then return 'running', inc, string.match(entry, '^%d+:%d:(%d+):') end
  end
  return nil
end

-- {id, state, record, tally, ending, due, incarnation, started, finished}, '' where there is none; false for no job.
local function snapshot(id, body, state, a, b)
  if not state then return false end
  local tally = redis.call('HGET', P .. 'tally', id) or ''
  if state == 'scheduled' then return {id, state, body, tally, '', a, '', '', ''} end
  if state == 'running' then return {id, state, body, tally, '', '', a, b, ''} end
  if state == 'dead' then return {id, state, body, tally, '', '', '', '', a} end
  return {id, state, body, tally, '', '', '', '', ''}
end
