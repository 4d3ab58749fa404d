-- Create a budget, or return the limits of an existing one.

local refused = refusal()
if refused then
  return refused
end
local budget = get(budgets, request.name) or new_budget()
if not has_limit(budget) then
  budget.usd, budget.tokens = request.usd, request.tokens
  put(budgets, request.name, budget)
end
write()
return { 'ok', now, status(request.name, budget) }
