-- include: _keys
-- ARGV: now, incarnation, then for each job: id, fence, first, n, n lines, step, progress ("" none).
-- Returns {now, refused...}.
redis.call('HDEL', P .. 'meta', '') -- a first write that no full memory refuses

local inc = ARGV[2]
local alive = call('ZSCORE', P .. 'leases', inc)
local LINES, BYTES = 200, 65536

-- What is kept of a job: where its lines begin and end, their bytes, how many were dropped; and of the attempt that
-- noted last how many lines it wrote, its last step, and whose it is.
local function head_of_note(key, id)
  -- One that is there though the job has none is of an earlier job of this name.
  if call('SADD', P .. 'noted', id) == 1 then call('DEL', key) end
  local numbers, pattern = {0, 0, 0, 0, 0, 0}, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$'
  local low, high, bytes, dropped, seen, last, whose = string.match(call('HGET', key, 'head') or '', pattern)
  if not low then return numbers, '' end
  for i, number in ipairs({low, high, bytes, dropped, seen, last}) do numbers[i] = tonumber(number) end
  return numbers, whose
end

local function drop_earliest(key, low, high, bytes)
  local gone = {}
  while high - low > LINES or bytes > BYTES do
    bytes = bytes - call('HSTRLEN', key, low)
    gone[#gone + 1] = low
    low = low + 1
  end
  if #gone > 0 then call('HDEL', key, unpack(gone)) end
  return low, bytes, #gone
end

local function take(id, fence, first, at, n, step, progress)
  local key = P .. 'note:' .. id
  local head, whose = head_of_note(key, id)
  local low, high, bytes, dropped, seen, last = unpack(head)
  if whose ~= fence .. ' ' .. inc then seen, last = 0, 0 end
  local fields = {}
  for i = math.max(0, seen - first), n - 1 do
    local line = ARGV[at + i]
    fields[#fields + 1], fields[#fields + 2] = high, line
    high, bytes = high + 1, bytes + #line
  end
  if #fields > 0 then call('HSET', key, unpack(fields)) end
  dropped = dropped + math.max(0, first - seen)
  seen = math.max(seen, first + n)
  if progress ~= '' and step > last then
    call('HSET', key, 'progress', progress)
    last = step
  end
  local gone
  low, bytes, gone = drop_earliest(key, low, high, bytes)
  local row = string.format('%d %d %d %d %d %d %s %s', low, high, bytes, dropped + gone, seen, last, fence, inc)
  call('HSET', key, 'head', row)
end

local reply, at = {now}, 3
while at <= #ARGV do
  local id, fence, first, n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local entry = alive and call('HGET', P .. 'run:' .. inc, id)
  if entry and find(entry, fence .. ':', 1, true) == 1 then
    take(id, fence, first, at + 4, n, tonumber(ARGV[at + 4 + n]), ARGV[at + 5 + n])
  else
    reply[#reply + 1] = id
  end
  at = at + 6 + n
end
return reply
