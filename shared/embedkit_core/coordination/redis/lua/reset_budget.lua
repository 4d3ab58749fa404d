-- Reset what was spent of a budget, and its limits. Return it as it was.

local refused = refusal()
if refused then
  return refused
end
lose_stale_owners()
local budget, before = get(budgets, request.name), {}
if budget and not is_hidden(budget) then
  before[1] = status(request.name, budget)
  if budget.held[1] == 0 and budget.held[2] == 0 and not budget.is_restored then
    put(budgets, request.name, false)
  else
    local reset = new_budget()
    -- What is lost was taken by the reset: a late settlement must not take it again.
    reset.epoch = math.max(now, budget.epoch + 1)
    reset.held, reset.holds, reset.is_restored = budget.held, budget.holds, budget.is_restored
    put(budgets, request.name, reset)
  end
end
write()
return { 'ok', now, before }
