-- Return all budgets.

local refused = refusal()
if refused then
  return refused
end
lose_stale_owners()
local found = {}
for _, name in ipairs(redis.call('HKEYS', BUDGETS)) do
  local budget = get(budgets, name)
  if not is_hidden(budget) then
    found[#found + 1] = status(name, budget)
  end
end
write()
return { 'ok', now, found }
