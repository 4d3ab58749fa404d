-- Return the positions of those leases that have ended or are lost.

local refused = refusal()
if refused then
  return refused
end
lose_stale_owners()
local ended = {}
call_in_parts('ZMSCORE', ACTIVE, request.leases, function(found, first)
  for i = 1, #found do
    if not found[i] or scores[ACTIVE][request.leases[first + i - 1]] == false then
      ended[#ended + 1] = first + i - 2
    end
  end
end)
write()
return { 'ok', now, ended }
