-- Reading and extending a tally: "[1,attempts,failures,crashes,losses,generation]", then one line per attempt.

local COUNTS = '^%s*%[' .. string.rep('%s*(%d+)%s*,', 5) .. '%s*(%d+)%s*([,%]].*)$'

-- The counts, in their rest as it is whatever a newer release appended; and the lines. Begins anew where they are
-- damaged: an error would stop all that the script is to do, for as long as the job is there.
local function read_tally(text)
  local head, lines = string.match(text or '', '^([^\n]*)\n?(.*)$')
  local counts = {string.match(head, COUNTS)}
  local whole = #counts == 7 and pcall(cjson.decode, head)
  counts.rest, counts[7] = counts[7], nil
  for i = 1, 6 do
    counts[i] = tonumber(counts[i])
    whole = whole and counts[i] < 2 ^ 53
  end
  if not whole then return {1, 0, 0, 0, 0, 0, rest = ']'}, '' end
  return counts, lines
end

local function attempt_line(number, outcome, started, inc, error_type, message)
  return string.format('[%d,"%s",%s,%d,%s,"%s",%s]', number, outcome, started, now, cjson.encode(inc), error_type, cjson.encode(message))
end

local function write_tally(counts, lines, line)
  local text = string.format('[%d,%d,%d,%d,%d,%d', unpack(counts)) .. counts.rest
  if lines ~= '' then text = text .. '\n' .. lines end
  if line then text = text .. '\n' .. line end
  return text
end
