-- Reserve an amount in a budget for work that outlives its process, once. Return the budget if it has no room.

local refused = refusal() or overtaken()
if refused then
  return refused
end
scores[OWNERS][request.owner] = now -- so that its attempts are forgotten with it
local key, full = request.hold .. '\0' .. request.name, {}
if not get(holds, key) then
  local budget = get(budgets, request.name) or new_budget()
  if not has_limit(budget) then
    budget.usd, budget.tokens = request.usd, request.tokens
  end
  if allows(budget, request.amount) then
    budget.holds = budget.holds or { 0, 0 }
    add_to(budget.held, request.amount)
    add_to(budget.holds, request.amount)
    put(budgets, request.name, budget)
    put(holds, key, { held = request.amount, billed = { 0, 0 } })
  else
    full[1] = status(request.name, budget)
  end
end
write()
return { 'ok', now, full }
