-- Reading and extending a tally: "[1,attempts,failures,crashes,losses,generation]", then one line per attempt.

local function read_tally(text)
  if not text or text == '' then return {1, 0, 0, 0, 0, 0}, '' end
  local head, lines = string.match(text, '^(%b[])\n?(.*)$')
  local ok, numbers = pcall(cjson.decode, head or '')
  if not ok or type(numbers) ~= 'table' or #numbers < 6 then return {1, 0, 0, 0, 0, 0}, '' end
  return numbers, lines
end

local function attempt_line(number, outcome, started, inc, error_type, message)
  return string.format('[%d,"%s",%s,%d,%s,"%s",%s]', number, outcome, started, now, cjson.encode(inc), error_type, cjson.encode(message))
end

local function write_tally(numbers, lines, line)
  local parts = {}
  for i, number in ipairs(numbers) do parts[i] = string.format('%d', number) end
  local text = '[' .. table.concat(parts, ',') .. ']'
  if lines ~= '' then text = text .. '\n' .. lines end
  if line then text = text .. '\n' .. line end
  return text
end
