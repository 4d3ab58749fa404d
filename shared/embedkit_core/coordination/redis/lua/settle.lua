-- Count what is new in the bill of a hold as spent, and release as much; all that is left if it is final.

local refused = refusal() or overtaken()
if refused then
  return refused
end
scores[OWNERS][request.owner] = now -- so that its attempts are forgotten with it
local key = request.hold .. '\0' .. request.name
local hold = get(holds, key) or { held = { 0, 0 }, billed = { 0, 0 } }
if not hold.is_ended then
  local lost = request.is_final and request.lost or { 0, 0 }
  local new = beyond(request.billed, hold.billed)
  local left = request.is_final and { 0, 0 } or beyond(hold.held, new)
  local released = { hold.held[1] - left[1], hold.held[2] - left[2] }
  add_to(hold.billed, new)
  if new[1] + new[2] + lost[1] + lost[2] + released[1] + released[2] > 0 then
    local budget = get(budgets, request.name) or new_budget()
    add_to(budget.spent, new)
    add_to(budget.lost, lost)
    budget.held, budget.holds = beyond(budget.held, released), beyond(budget.holds or { 0, 0 }, released)
    put(budgets, request.name, budget)
  end
  hold.held, hold.is_ended = left, request.is_final or nil
  -- One that has cost something is kept: a repeated settlement must not count it again.
  local is_empty = left[1] + left[2] + hold.billed[1] + hold.billed[2] + lost[1] + lost[2] == 0
  put(holds, key, not is_empty and hold)
end
write()
return { 'ok', now }
