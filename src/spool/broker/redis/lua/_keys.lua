-- The key layout. Every script begins with this file; KEYS[1] is P = "<prefix>:{<queue>}:", so that all keys of a
-- queue share one slot. ARGV[1] is empty, or (tests only) the time in ms to use instead of the server's.
--
-- P..jobs          hash    id -> record                     until the job is done, cancelled, deleted or pruned
-- P..tally         hash    id -> tally                      of jobs that were handed back at least once
-- P..ready         zset    id by place                      main lane; place = priority * 2^50 + sequence
-- P..ready:1       zset    id by place                      process lane
-- P..suspect       zset    id by place
-- P..scheduled     zset    id by due time
-- P..dead          zset    id by time of death              bounded by count and age (settle.lua)
-- P..parked        set     task names that have parked jobs
-- P..parked:<task> zset    id by place; a suspect's place is negative
-- P..run:<inc>     hash    id -> "<seq>:<lane>:<started>:<place>"   what an incarnation holds; gone when it is retired
-- P..leases        zset    incarnation by end of its lease
-- P..inc:<inc>     hash    claim, settle (last seqs), reply (of that settle), lease, tasks; gone when it is retired
-- P..retiring      hash    incarnation -> "<reason>:<detail>"       until all its jobs are handed back
-- P..gone          zset    tombstones: incarnation by the time until which it is refused
-- P..tasks:<hash>  set     task names                       TTL, renewed by beat
-- P..cancel        hash    id -> reason                     wishes for running jobs; until the job ends
-- P..meta          hash    seq, seen, amnesty, paused, recent
-- P..totals        hash    monotone counters
-- P..ends          zset    times (ms) by themselves         until a claim finds them passed
-- P..ends:<time>   hash    id -> ending                     TTL; they go at that time
-- P..recent        stream  n, ids ("D<id>\nC<id>...")       about 10,000 ids, TTL
-- P..metrics       stream  blob                             capped, TTL
-- P..wake          list    tokens; hints                    capped at 8
-- P..waiters       hash    id -> channels, space separated  TTL
--
-- Across queues, under <prefix>:{spool}: and read by no script of a queue:
-- layout           string  version of this layout
-- queues           set     queue names
-- doc:<kind>       hash    key -> "<version>:<body>"
-- docx:<kind>      zset    key by expiry

-- The scripts that every job passes through (enqueue, claim, settle) count table indices themselves and look up no
-- global in their loops: that is a third of their time.

local P = KEYS[1]
local call, find = redis.call, string.find
local BAND = 1125899906842624 -- 2^50
local LANES = {[0] = P .. 'ready', [1] = P .. 'ready:1', [2] = P .. 'suspect'}
local DAY = 86400000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

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

local function count(name, n)
  if n > 0 then redis.call('HINCRBY', P .. 'totals', name, n) end
end

local function wake(most)
  if call('RPUSH', P .. 'wake', '1') > most then call('LPOP', P .. 'wake') end
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
