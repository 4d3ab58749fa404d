-- Remove the caller, unless it has leases that it has not ended.

local refused = refusal() or overtaken()
if refused then
  return refused
end
finish_unknown()
for _, id in ipairs(active_leases(request.owner, -1)) do
  if scores[ACTIVE][id] ~= false then
    write()
    return { 'ok', now }
  end
end
for _, field in ipairs(request.models) do
  local model = get_model(field)
  if model and model.demand[request.owner] then
    model.demand[request.owner] = nil
    put(models, field, model)
  end
end
remove_owner(request.owner)
write()
return { 'ok', now }
