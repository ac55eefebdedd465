-- The key layout. Every script begins with this file; KEYS[1] is P = "<prefix>:{<queue>}:", so that all keys of a
-- queue share one slot. ARGV[1] is empty, or (tests only) the time in ms to use instead of the server's.
--
-- P..jobs          hash    id -> record                     until the job is done, cancelled, deleted or pruned
-- P..tally         hash    id -> tally                      of jobs that were handed back at least once
-- P..ready         zset    id by place                      main lane; place = priority * 2^50 + sequence
-- P..ready:1       zset    id by place                      process lane
-- P..suspect       zset    id by place
-- P..scheduled     zset    id by due time
-- P..dead          zset    id by time of death              bounded by count and age (_end.lua)
-- P..parked        set     task names that have parked jobs
-- P..parked:<task> zset    id by place; a suspect's place is negative
-- P..unroutable    zset    id by time of parking            exactly those that are parked
-- P..run:<inc>     hash    id -> "<seq>:<lane>:<started>:<place>"   what an incarnation holds; gone when it is retired
-- P..leases        zset    incarnation by end of its lease
-- P..told          hash    incarnation -> "<lease>:<hash of its task names>"; gone when it is retired
-- P..inc:<inc>     hash    claim, settle (last seqs), reply (of that settle); gone when it is retired
-- P..retiring      hash    incarnation -> "<reason>:<detail>"       until all its jobs are handed back
-- P..gone          zset    tombstones: incarnation by the time until which it is refused
-- P..tasks:<hash>  set     task names                       TTL, renewed by beat
-- P..cancel        hash    id -> reason                     wishes for running jobs; until the job ends
-- P..noted         set     ids of those jobs that noted something, until they end
-- P..note:<id>     hash    head (note.lua), progress, and lines by number: while P..noted has it; TTL with its ending
-- P..meta          hash    seq, seen, amnesty, paused, recent, blobs, synced (durable.py)
-- P..totals        hash    monotone counters
-- P..ends          zset    times (ms) by themselves         until a claim finds them passed
-- P..ends:<time>   hash    id -> ending                     TTL; they go at that time
-- P..recent        stream  n, ids ("D<id>\nC<id>...")       about 10,000 ids, TTL
-- P..metrics       stream  b: blob, n: "<time>/<number>"    capped, TTL
-- P..wake, ..:1    list    tokens; hints that a lane has work   capped at 8
-- P..waiters       hash    id -> channels, space separated  TTL
--
-- Channels: P..orders ("" when a running job is to be cancelled), <prefix>:ended:<waiter> ("P\nid\nending").
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

local function count(name, n)
  if n > 0 then redis.call('HINCRBY', P .. 'totals', name, n) end
end

-- A token for one worker that waits with a free slot in the lane. A full one would take it from who is idle.
local function wake(lane)
  local tokens = lane == 1 and P .. 'wake:1' or P .. 'wake'
  if call('RPUSH', tokens, '1') > 8 then call('LPOP', tokens) end
end

local function wake_lanes()
  for lane = 0, 1 do
    if call('EXISTS', LANES[lane]) == 1 then wake(lane) end
  end
end
