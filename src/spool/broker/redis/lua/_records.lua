-- Reading records and endings without decoding them, and giving jobs their places.

-- Where the task name of a record lies: the elements before it are one small integer (the version).
-- Returns nil for bytes that are no record.
local function task_of(body)
  local first, at = string.byte(body, 1), 3
  if first == 0xdc then at = 5 elseif not first or first < 0x95 or first > 0x9f then return nil end
  local size = string.byte(body, at)
  if not size then return nil end
  if size == 0xd9 then
    size, at = string.byte(body, at + 1) or 0, at + 1
  elseif size > 0xa0 and size <= 0xbf then
    size = size - 0xa0
  else
    return nil
  end
  if #body < at + size + 2 then return nil end
  return string.sub(body, at + 1, at + size), at + size
end

-- task, priority, lane; of damaged bytes nil, normal, main.
local function head_of(body)
  local task, at = task_of(body)
  if not task then return nil, 2, 0 end
  local priority, lane = string.byte(body, at + 1, at + 2)
  if priority > 4 or lane > 1 then return task, 2, 0 end
  return task, priority, lane
end

-- The elements of a record before its payload, which may hold what cmsgpack does not know.
local function fields_of(body)
  local fields, at = {1, '', 2, 0, 3, '', 0}, string.byte(body, 1) == 0xdc and 3 or 1
  if not task_of(body) then return fields end
  for i = 1, 7 do
    local ok, after, value = pcall(cmsgpack.unpack_one, body, at)
    if not ok then break end
    fields[i], at = value, after
    if after < 0 then break end
  end
  return fields
end

-- "done" or "cancelled"; of damaged bytes nil.
local function state_of(ending)
  local at = string.byte(ending, 1) == 0xdc and 5 or 3
  local kind = string.byte(ending, at)
  if kind == 0xa4 and string.sub(ending, at + 1, at + 4) == 'done' then return 'done' end
  if kind == 0xa9 and string.sub(ending, at + 1, at + 9) == 'cancelled' then return 'cancelled' end
  return nil
end

-- As HMGET, for more fields than a Lua stack has room for.
local function hmget(key, fields)
  local values = {}
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    for i, value in ipairs(redis.call('HMGET', key, unpack(fields, first, last))) do values[first + i - 1] = value end
  end
  return values
end

-- Joins the tail of its priority: pairs {lane, priority, id}, in order.
local function append(jobs)
  local last = redis.call('HINCRBY', P .. 'meta', 'seq', #jobs)
  local args = {[0] = {}, [1] = {}}
  for i, job in ipairs(jobs) do
    local list = args[job[1]]
    list[#list + 1] = job[2] * BAND + last - #jobs + i
    list[#list + 1] = job[3]
  end
  for lane = 0, 1 do
    if #args[lane] > 0 then redis.call('ZADD', LANES[lane], unpack(args[lane])) end
  end
end
