-- Create the store unless there is one. Restore budgets that were in use before Redis lost its data: what was spent of
-- them is not known.

local refused = refusal()
if refused then
  return refused
end
if redis.call('HSETNX', META, 'version', VERSION) == 1 then
  redis.call('HSET', META, 'store', request.new_store, 'salt', request.new_salt)
  redis.call('HSET', CLAIMS, '', string.rep(' ', 100)) -- else Redis searches all claims for each key while they are few
end
for _, lost in ipairs(request.lost_budgets) do
  local budget = get(budgets, lost.name) or new_budget()
  if not budget.is_restored then
    budget.is_restored = true
    if not has_limit(budget) then
      budget.usd, budget.tokens = lost.usd, lost.tokens
    end
    budget.lost = { math.max(budget.lost[1], lost.usd or 0), math.max(budget.lost[2], lost.tokens or 0) }
    put(budgets, lost.name, budget)
  end
end
write()
local store = redis.call('HMGET', META, 'store', 'salt')
return { 'ok', now, store[1], store[2] }
