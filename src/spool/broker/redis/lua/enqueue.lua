-- include: _keys, _store
-- Jobs with fresh ids, which nobody can know: most of all jobs come this way. The others: enqueue_checked.lua.
-- ARGV: now, then groups: lane, priority, due kind ("" ready, "d" delay, "a" absolute), due, n, then n times id, record.
-- Returns now.
local args, size, at = ARGV, #ARGV, 2
while at <= size do
  local kind, due, n = args[at + 2], tonumber(args[at + 3]), tonumber(args[at + 4])
  if kind == 'd' then due = now + due end
  store(args, at + 5, n, tonumber(args[at]), tonumber(args[at + 1]), due)
  at = at + 5 + 2 * n
end
finish()
return now
