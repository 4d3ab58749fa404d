-- End requests and begin others; with neither, keep the leases of the caller.

-- Return the prefixes of the keys, and the stored claims on them, by position.
local function read_claims(packed)
  local prefixes, stored, sub = {}, {}, string.sub
  for p = 1, #packed / PREFIX_BYTES do
    prefixes[p] = sub(packed, (p - 1) * PREFIX_BYTES + 1, p * PREFIX_BYTES)
  end
  call_in_parts('HMGET', CLAIMS, prefixes, function(found, first)
    for i = 1, #found do
      if found[i] then
        stored[first + i - 1] = found[i]
      end
    end
  end)
  if next(claims) then
    for p, prefix in ipairs(prefixes) do
      local changed = claims[prefix]
      if changed ~= nil then
        stored[p] = changed or nil
      end
    end
  end
  return prefixes, stored
end

-- Return the lease of a stored claim, and when the last claim of another owner ended that it has replaced.
local function parse(claim)
  local bar = string.find(claim, '|', 1, true)
  if not bar then
    return claim
  end
  return string.sub(claim, 1, bar - 1), tonumber(string.sub(claim, bar + 1))
end

local function read_leases(ids)
  local unknown = {}
  for id in pairs(ids) do
    if leases.known[id] == nil then
      unknown[#unknown + 1] = id
    end
  end
  call_in_parts('HMGET', LEASES, unknown, function(found, first)
    for i = 1, #found do
      leases.known[unknown[first + i - 1]] = found[i] and cmsgpack.unpack(found[i])
    end
  end)
end

-- Return by the position of keys: the lease of another process that sends it, or true if it must be looked up again;
-- when the last claim of another owner on it ended; all prefixes.
local function find_claims(packed, since)
  local top = redis.call('ZREVRANGE', HORIZONS, 0, 1, 'WITHSCORES')
  local horizon = top[2]
  if top[1] == request.owner then
    horizon = top[4]
  end
  local prefixes, stored = read_claims(packed)
  local found, ended_at = {}, {}
  if horizon and tonumber(horizon) >= since then
    for p = 1, #prefixes do
      found[p] = true
    end
  elseif next(stored) then
    local ids, foreign = {}, {}
    for p, claim in pairs(stored) do
      ids[p], ended_at[p] = parse(claim)
      if owner_of(ids[p]) ~= request.owner then
        foreign[ids[p]] = true
      end
    end
    read_leases(foreign)
    for p, id in pairs(ids) do
      local lease = foreign[id] and leases.known[id]
      if lease and not lease.state then
        found[p] = id
      else
        if lease then
          ended_at[p] = math.min(now, lease.ended_at)
        end
        found[p] = ended_at[p] and ended_at[p] >= since or nil
      end
    end
  end
  return found, ended_at, prefixes
end

local function add(amounts, name, usd, tokens)
  local sum = amounts[name] or { 0, 0 }
  amounts[name] = { sum[1] + usd, sum[2] + tokens } -- not exact if it is above all limits
end

-- Return copies of the budgets that pay for a request, with the limits that are in force.
local function paying_budgets(one)
  local paying = {}
  for _, reservation in ipairs(one.reservations) do
    local budget = get(budgets, reservation.name) or new_budget()
    local copy = {}
    for field, value in pairs(budget) do
      copy[field] = value
    end
    copy.held = { budget.held[1], budget.held[2] }
    if not has_limit(copy) then
      copy.usd, copy.tokens = reservation.usd, reservation.tokens
    end
    paying[reservation.name] = copy
  end
  return paying
end

-- Reserve each text in all of its budgets, or in none. Texts without room are added to `taken`.
-- Return the budgets with the reservations, what is reserved in each, and the texts without room.
local function reserve(one, taken)
  if not one.reservations then
    return {}, {}, {}
  end
  local paying, totals = paying_budgets(one), {}
  for _, reservation in ipairs(one.reservations) do
    local usd, tokens = 0, 0
    for i, text_index in ipairs(reservation.texts) do
      if not taken[text_index] then
        usd, tokens = usd + reservation.amounts_usd[i], tokens + reservation.amounts_tokens[i]
      end
    end
    add(totals, reservation.name, usd, tokens)
  end
  local fits = true
  for name, total in pairs(totals) do
    fits = fits and allows(paying[name], total)
  end
  local reserved, unfunded = {}, {}
  if fits then
    for name, total in pairs(totals) do
      add_to(paying[name].held, total)
      if total[1] > 0 or total[2] > 0 then
        reserved[name] = total
      end
    end
    return paying, reserved, unfunded
  end
  local amounts = {} -- by reservation, then by text
  for r, reservation in ipairs(one.reservations) do
    amounts[r] = {}
    for i, text_index in ipairs(reservation.texts) do
      amounts[r][text_index] = { reservation.amounts_usd[i], reservation.amounts_tokens[i] }
    end
  end
  for text_index = 0, #one.tokens - 1 do
    if not taken[text_index] then
      local parts, names = {}, {}
      for r, reservation in ipairs(one.reservations) do
        local amount = amounts[r][text_index]
        if amount then
          if not parts[reservation.name] then
            names[#names + 1] = reservation.name
          end
          add(parts, reservation.name, amount[1], amount[2])
        end
      end
      local refusing
      for _, name in ipairs(names) do
        if not refusing and not allows(paying[name], parts[name]) then
          refusing = name
        end
      end
      if refusing then
        taken[text_index] = true
        unfunded[#unfunded + 1] = { text_index, unpack(status(refusing, paying[refusing])) }
      else
        for name, part in pairs(parts) do
          add_to(paying[name].held, part)
          add(reserved, name, part[1], part[2])
        end
      end
    end
  end
  return paying, reserved, unfunded
end

local function bulk_limit(limit)
  return limit - math.floor(limit * QUERY_SHARE)
end

-- Return the time until which the amounts of the last minute last at the average rate of a limit.
local function paced_until(window, unit, limit)
  local step = MINUTE / bulk_limit(limit)
  local paced, at = -math.huge, -math.huge
  for i = 1, #window, 3 do
    at = window[i]
    paced = math.max(paced, at - BURST) + window[i + unit] * step
  end
  return math.min(paced, at + COUNTED)
end

-- Return the microseconds until an amount may be taken; `unit` is 1 for requests and 2 for tokens.
local function window_wait(model, unit, amount, limit, is_query, demand)
  expire(model)
  local window, used = model.window, math.max(0, model.sums[unit])
  local usable = is_query and limit or bulk_limit(limit)
  local excess, free_at = used + math.min(amount, usable) - usable, now
  for i = 1, #window, 3 do
    if excess <= 0 then
      break
    end
    excess, free_at = excess - window[i + unit], window[i] + COUNTED
  end
  if not is_query and demand > bulk_limit(limit) - used then
    free_at = math.max(free_at, paced_until(window, unit, limit))
  end
  return math.max(0, math.ceil(free_at - now))
end

-- Return the requests and tokens that other processes have to send, as noted in the last minute.
local function others_backlog(model)
  local requests, tokens = 0, 0
  for owner, note in pairs(model.demand) do
    if note[1] + MINUTE <= now then
      model.demand[owner] = nil
    elseif owner ~= request.owner then
      requests, tokens = requests + note[2], tokens + note[3]
    end
  end
  return requests, tokens
end

local function permit_wait(model, one, tokens)
  local wait = 0
  local requests_ahead, tokens_ahead = others_backlog(model)
  if one.requests_per_minute then
    local demand = one.backlog_requests + requests_ahead
    wait = window_wait(model, 1, 1, one.requests_per_minute, one.is_query, demand)
  end
  if one.tokens_per_minute then
    local demand = math.max(tokens, one.backlog_tokens) + tokens_ahead
    wait = math.max(wait, window_wait(model, 2, tokens, one.tokens_per_minute, one.is_query, demand))
  end
  return wait
end

-- Take a permit. Return when it is granted for (nothing if no limit is in force), the wait and the pause.
local function permit(one, tokens)
  local model, has_limits = get_model(one.model), one.requests_per_minute or one.tokens_per_minute
  if not model and not has_limits then
    return nil, 0, 0
  end
  model = model or new_model()
  local paused = math.max(0, (model.paused or 0) - now)
  local wait = math.max(paused, has_limits and permit_wait(model, one, tokens) or 0)
  local is_granted = wait <= AHEAD
  if has_limits then -- what is granted counts as used, and no longer as backlog
    local requests_left = math.max(0, one.backlog_requests - (is_granted and 1 or 0))
    local tokens_left = math.max(0, one.backlog_tokens - (is_granted and tokens or 0))
    local has_backlog = requests_left > 0 or tokens_left > 0
    model.demand[request.owner] = has_backlog and { now, requests_left, tokens_left } or nil
  end
  if is_granted then
    take(model, now + wait, 1, tokens)
  end
  if is_granted or has_limits then
    put_model(one.model, model)
  end
  return is_granted and now + wait or nil, wait, paused
end

-- Store a lease with the claims on the texts that are not taken.
local function add_lease(one, packed, prefixes, ended_at, taken, lease)
  local mine, id = {}, one.lease
  for p, prefix in ipairs(prefixes) do
    if not taken[one.keyed and one.keyed[p] or p - 1] then
      mine[#mine + 1] = prefix
      claims[prefix] = ended_at[p] and id .. '|' .. text(ended_at[p]) or id
    end
  end
  if #mine > 0 then
    lease.prefixes = #mine == #prefixes and packed or table.concat(mine)
  end
  put(leases, one.lease, lease)
  scores[ACTIVE][one.lease] = 0
end

-- Claim what no other process sends, and reserve its budget and its permit. Return what is granted.
local function begin(one, packed)
  if get(leases, one.lease) then -- the call is repeated, since its reply was lost
    finish({ lease = one.lease })
    scores[FORGET][one.lease] = false
  end
  local since = math.min(request.at or now, now) - one.age
  local found, ended_at, prefixes = find_claims(packed, since)
  local taken, others, recheck, by_lease = {}, {}, {}, {}
  for p, lease in pairs(found) do
    local text_index = one.keyed and one.keyed[p] or p - 1
    taken[text_index] = true
    if lease == true then
      recheck[#recheck + 1] = text_index
    else
      local texts = by_lease[lease]
      if not texts then
        texts = {}
        by_lease[lease] = texts
        others[#others + 1] = { lease, texts }
      end
      texts[#texts + 1] = text_index
    end
  end
  local paying, reserved, unfunded = reserve(one, taken)
  local tokens, count = 0, 0
  for i, amount in ipairs(one.tokens) do
    if not taken[i - 1] then
      tokens, count = tokens + amount, count + 1
    end
  end
  if count == 0 then
    return { 0, 0, 0, others, recheck, unfunded }
  end
  tokens = math.min(MAX_INTEGER, tokens)
  local permit_at, wait, paused = permit(one, tokens)
  if wait > AHEAD then
    return { 0, wait, paused, others, recheck, unfunded }
  end
  for name, budget in pairs(paying) do
    put(budgets, name, budget)
  end
  local lease = { model = one.model, permit_at = permit_at, tokens = tokens, reserved = reserved }
  add_lease(one, packed, prefixes, ended_at, taken, lease)
  return { 1, wait, paused, others, recheck, unfunded }
end

-- Forget leases that ended a while ago. A process that looked into the cache before must look again.
local function forget(limit)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', FORGET, '-inf', text(now), 'LIMIT', 0, limit)) do
    local lease = get(leases, id)
    if lease and lease.prefixes then
      raise_horizon(standing_for(owner_of(id)), math.min(now, lease.ended_at))
      local prefixes, stored = read_claims(lease.prefixes)
      for p, claim in pairs(stored) do
        if claim == id or parse(claim) == id then
          claims[prefixes[p]] = false
        end
      end
      lease.prefixes = nil
    end
    -- The owner of a lost lease may still settle it.
    if lease and lease.state == LOST and now < lease.ended_at + LATE then
      put(leases, id, lease)
      scores[FORGET][id] = lease.ended_at + LATE
    else
      put(leases, id, false)
      scores[FORGET][id] = false
    end
  end
end

local function forget_models()
  for _, field in ipairs(redis.call('ZRANGEBYSCORE', USED, '-inf', '(' .. text(now - MODEL_KEEP), 'LIMIT', 0, 2)) do
    if scores[USED][field] == nil then
      put(models, field, false)
      scores[USED][field] = false
    end
  end
end

local refused = refusal() or overtaken()
if refused then
  return refused
end
repair_times()
local processes = count_processes()
scores[OWNERS][request.owner] = now
lose_stale_owners()
finish_unknown()
for _, ended in ipairs(request.ends) do
  finish(ended)
end
local grants = {}
for number, one in ipairs(request.begins) do
  grants[number] = begin(one, ARGV[number + 2])
end
forget(4 + 2 * #request.begins)
forget_models()
write()
return { 'ok', now, processes, grants }
