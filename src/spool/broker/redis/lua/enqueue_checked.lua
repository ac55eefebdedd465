-- include: _keys, _records, _endings, _store
-- Jobs whose ids may be known: given by the caller, or sent before. ARGV: as enqueue.lua, with a fingerprint (maybe
-- empty) after each record. Returns {now, {existing}, {conflicts}}.
local existing, conflicts, own = {}, {}, {}

-- The fingerprint under which an id is known to this queue, or nil; empty where it cannot be read.
local function known(id)
  local body = redis.call('HGET', P .. 'jobs', id)
  if body then
    local found = fields_of(body)[6]
    return type(found) == 'string' and found or ''
  end
  local ending = ending_of(id)
  if not ending then return nil end
  local offset, fields = string.byte(ending, 1) == 0xdc and 3 or 1, {}
  for i = 1, 4 do
    local ok, after, element = pcall(cmsgpack.unpack_one, ending, offset)
    if not ok or after < 0 then return '' end
    offset, fields[i] = after, element
  end
  local readable = state_of(ending) and type(fields[4]) == 'string'
  return readable and fields[4] or ''
end

-- Whether one fingerprint begins with the other, as an empty one does.
local function alike(one, other)
  return string.sub(one, 1, #other) == other or string.sub(other, 1, #one) == one
end

-- Of n jobs at args[at] the new ones: pairs id, record. The others are named to the caller.
local function new_ones(args, at, n)
  local pairs_ = {}
  for i = at, at + n * 3 - 1, 3 do
    local id, fingerprint = args[i], args[i + 2]
    local found = own[id] or known(id)
    if not found then
      own[id] = fingerprint
      pairs_[#pairs_ + 1] = id
      pairs_[#pairs_ + 1] = args[i + 1]
    elseif alike(found, fingerprint) then
      existing[#existing + 1] = id
    else
      conflicts[#conflicts + 1] = id
    end
  end
  return pairs_
end

local args, size, at = ARGV, #ARGV, 2
while at <= size do
  local kind, due, n = args[at + 2], tonumber(args[at + 3]), tonumber(args[at + 4])
  if kind == 'd' then due = now + due end
  local pairs_ = new_ones(args, at + 5, n)
  if #pairs_ > 0 then store(pairs_, 1, #pairs_ / 2, tonumber(args[at]), tonumber(args[at + 1]), due) end
  at = at + 5 + 3 * n
end
finish()
return {now, existing, conflicts}
