-- include: _keys, _records, _tally, _endings, _end, _find
-- ARGV: now, action (cancel, replay, delete, pause, resume), reason, ttl, states that are meant (separated by spaces;
-- empty: any), ids... Returns {now, changed...}.
local action, reason, ttl = ARGV[2], ARGV[3], ARGV[4]
local reply, cancelled, replayed, wished = {now}, {}, {}, false

local wanted = ARGV[5] ~= '' and {} or nil
for state in string.gmatch(ARGV[5], '%S+') do wanted[state] = true end

local function meant(id, body)
  if not wanted then return true end
  if body then return wanted[locate(id, body) or ''] end
  local ending = ending_of(id)
  return ending and wanted[state_of(ending) or 'done']
end

-- The msgpack text at the end of what is given, nil if it is no name (spool.job.NAME).
local function name_at_end(tail)
  local name = string.match(tail, '[\160-\191]([%w_][%w_.:-]*)$')
  if not name then
    name = string.match(tail, '\217.([%w_][%w_.:-]*)$')
    return name and #name < 128 and string.byte(tail, -#name - 1) == #name and name or nil
  end
  if string.byte(tail, -#name - 1) ~= 160 + #name then return nil end
  -- What looks like its length may be the last byte of a letter instead, of a longer text that is no name.
  local lead, more = string.match(string.sub(tail, 1, -#name - 1), '([\194-\244])([\128-\191]+)$')
  local first = lead and string.byte(lead)
  local inside = lead and #more <= (first >= 240 and 3 or first >= 224 and 2 or 1)
  return not inside and name or nil
end

-- The key in a record, nil where there is none. It lies behind what cmsgpack may not know, so it is looked for from the
-- end: before a signature (spool.protection: an id of up to 32 characters, and 32 bytes) and three nils, ASCII
-- (spool.job.NAME), behind its length.
local function key_of(body)
  local kind, tail = string.byte(body, 1), string.sub(body, -201)
  if kind == 0x9f then
    tail = string.sub(tail, 1, -33)
    tail = string.match(tail, '^(.*)\146[\160-\191][%w_.-]+\196 $') or string.match(tail, '^(.*)\146\217 [%w_.-]+\196 $')
  elseif kind ~= 0x9e then
    return nil
  end
  if not tail or string.sub(tail, -3) ~= '\192\192\192' then return nil end
  return name_at_end(string.sub(tail, 1, -4))
end

-- An encoded Ending of a job that never ends by a worker's hand.
local function cancelled_ending(id, body)
  local record, tally, key = fields_of(body), redis.call('HGET', P .. 'tally', id) or '', key_of(body)
  local parts = {string.char(key and 0x9f or 0x9d)}
  for _, value in ipairs({1, 'cancelled', record[2], record[6], record[7], 0, now, read_tally(tally)[2]}) do
    parts[#parts + 1] = cmsgpack.pack(value)
  end
  parts[#parts + 1] = string.char(0xc0)
  for _, value in ipairs({reason, '', tally, record[3]}) do parts[#parts + 1] = cmsgpack.pack(value) end
  -- A key comes behind the place of a signature.
  if key then parts[#parts + 1] = '\192' .. cmsgpack.pack(key) end
  return table.concat(parts)
end

local function forget(id, life)
  end_notes({id}, life)
  redis.call('HDEL', P .. 'jobs', id)
  redis.call('HDEL', P .. 'tally', id)
  redis.call('HDEL', P .. 'cancel', id)
end

local act = {}

function act.cancel(id, body)
  if not body then return false end
  if unqueue(id, body) then
    local ending = cancelled_ending(id, body)
    forget(id, keep({id}, {ending}, tonumber(ttl)))
    cancelled[#cancelled + 1] = id
    tell({id}, {ending})
    return true
  end
  if locate(id, body) ~= 'running' then return false end
  if redis.call('HSETNX', P .. 'cancel', id, reason) == 0 then return false end
  wished = true
  return true
end

function act.replay(id, body)
  if not body or not redis.call('ZSCORE', P .. 'dead', id) then return false end
  local counts, lines = read_tally(redis.call('HGET', P .. 'tally', id))
  counts[3], counts[4], counts[6] = 0, 0, counts[6] + 1
  local _, priority, lane = head_of(body)
  local tally = write_tally(counts, lines)
  -- Not before all of it has worked out: an error from here on would leave this call's jobs in no set.
  redis.call('ZREM', P .. 'dead', id)
  redis.call('HSET', P .. 'tally', id, tally)
  replayed[#replayed + 1] = {lane, priority, id}
  return true
end

function act.delete(id, body)
  if not body then
    if not drop_ending(id) then return false end
    call('UNLINK', P .. 'note:' .. id)
    return true
  end
  if redis.call('ZREM', P .. 'dead', id) == 0 and not unqueue(id, body) then return false end
  forget(id, 0)
  tell({id})
  return true
end

if action == 'pause' then
  redis.call('HSET', P .. 'meta', 'paused', 1)
elseif action == 'resume' then
  redis.call('HDEL', P .. 'meta', 'paused')
  wake_lanes()
else
  for i = 6, #ARGV do
    local id = ARGV[i]
    local body = redis.call('HGET', P .. 'jobs', id)
    if meant(id, body) and act[action](id, body) then reply[#reply + 1] = id end
  end
  count('cancelled', #cancelled)
  remember('C', cancelled)
  if wished then redis.call('PUBLISH', P .. 'orders', '') end
  if #replayed > 0 then
    append(replayed)
    count('replayed', #replayed)
    wake_lanes()
  end
  if action == 'delete' then count('deleted', #reply - 1) end
end
return reply
