-- The state of a coordinator, in front of each script. Times are microseconds, amounts are integers.
-- Constants that are not defined here are those of scripts.py, which are in front of this text.
-- What a script changes is written at its end, and first with commands that need memory: if Redis has none left, the
-- first one fails and nothing is changed.

local META, OWNERS, HORIZONS, LEASES, ACTIVE, FORGET, CLAIMS, MODELS, USED, BUDGETS, ATTEMPTS, HOLDS = unpack(KEYS)
local LOST, ENDED = 1, 2 -- states of a lease; an active one has none
local GONE = 'gone' -- stands for all owners that are gone: its horizon is the greatest of theirs
local MAX_STALE_OWNERS, MAX_LOST_LEASES = 10, 200 -- that one script loses
local CHUNK = 2000 -- arguments of one command

local request = cjson.decode(ARGV[1])
local now = request.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function hash(key)
  return { key = key, known = {}, changed = {} }
end
local leases, models, budgets, holds = hash(LEASES), hash(MODELS), hash(BUDGETS), hash(HOLDS)
local attempts = hash(ATTEMPTS) -- of strings
local claims = {} -- that are to be written, by prefix; false removes one
local scores = { [OWNERS] = {}, [HORIZONS] = {}, [ACTIVE] = {}, [FORGET] = {}, [USED] = {} } -- false removes a member

-- A Lua number as text: tostring() would shorten it to 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

local function owner_of(lease_id)
  return string.sub(lease_id, 1, OWNER_DIGITS)
end

-- Return a record, false if there is none.
local function get(from, field)
  local record = from.known[field]
  if record == nil then
    local packed = redis.call('HGET', from.key, field)
    record = packed and cmsgpack.unpack(packed)
    from.known[field] = record
  end
  return record
end

-- Note a record that is to be written; false removes it.
local function put(into, field, record)
  into.known[field] = record
  into.changed[field] = true
end

-- Call a command with many arguments, in parts.
local function call_in_parts(command, key, arguments, visit)
  for first = 1, #arguments, CHUNK do
    local reply = redis.call(command, key, unpack(arguments, first, math.min(first + CHUNK - 1, #arguments)))
    if visit then
      visit(reply, first)
    end
  end
end

local function write()
  local removals = {}
  local function store(key, values, set, remove)
    local arguments, removed, n = {}, {}, 0
    for name, value in pairs(values) do
      if not value then
        removed[#removed + 1] = name
      elseif set == 'ZADD' then
        arguments[n + 1], arguments[n + 2], n = text(value), name, n + 2
      else
        arguments[n + 1], arguments[n + 2], n = name, value, n + 2
      end
    end
    call_in_parts(set, key, arguments)
    removals[#removals + 1] = { remove, key, removed }
  end
  store(CLAIMS, claims, 'HSET', 'HDEL')
  for _, from in ipairs({ leases, models, budgets, holds, attempts }) do
    local values = {}
    for field in pairs(from.changed) do
      local record = from.known[field]
      values[field] = type(record) == 'table' and cmsgpack.pack(record) or record
    end
    store(from.key, values, 'HSET', 'HDEL')
  end
  for key, members in pairs(scores) do
    store(key, members, 'ZADD', 'ZREM')
  end
  for _, removal in ipairs(removals) do
    call_in_parts(unpack(removal))
  end
end

-- Return what is replied if the store is not the one that the caller knows; else nothing.
local function refusal()
  local found = redis.call('HMGET', META, 'version', 'store')
  if found[1] and found[1] ~= VERSION then
    return { 'version', found[1] }
  end
  if request.store and found[2] ~= request.store then
    return { 'store' }
  end
end

-- Return what is replied to a call that a later one of the same owner has overtaken, because its connection was lost;
-- else nothing.
local function overtaken()
  local attempt = tonumber(ARGV[2])
  local last = redis.call('HGET', ATTEMPTS, request.owner)
  if last and tonumber(last) >= attempt then
    return { 'overtaken' }
  end
  put(attempts, request.owner, text(attempt))
end

-- Owners

local function raise_horizon(owner, time)
  local known = scores[HORIZONS][owner]
  if known == nil then
    known = tonumber(redis.call('ZSCORE', HORIZONS, owner) or 0)
  end
  if time > (known or 0) then
    scores[HORIZONS][owner] = time
  end
end

-- Return the owner, or the one that stands for it if it is gone.
local function standing_for(owner)
  if owner == request.owner then
    return owner
  end
  local known = scores[OWNERS][owner]
  if known == nil then
    known = redis.call('ZSCORE', OWNERS, owner)
  end
  return known and owner or GONE
end

local function remove_owner(owner)
  raise_horizon(GONE, scores[HORIZONS][owner] or tonumber(redis.call('ZSCORE', HORIZONS, owner) or 0))
  scores[HORIZONS][owner] = false
  scores[OWNERS][owner] = false
  put(attempts, owner, false)
end

-- Return the number of processes, including the caller.
local function count_processes()
  local alive = redis.call('ZCOUNT', OWNERS, '(' .. text(now - LEASE), '+inf')
  local own = redis.call('ZSCORE', OWNERS, request.owner)
  if not own or tonumber(own) <= now - LEASE then
    alive = alive + 1
  end
  return alive
end

-- If the clock was set back, replace the times that would be reached only much later.
local function repair_times()
  local latest = redis.call('ZREVRANGE', OWNERS, 0, 0, 'WITHSCORES')[2]
  if not latest or tonumber(latest) <= now + 1000000 then
    return
  end
  for key, first in pairs({ [OWNERS] = now, [HORIZONS] = now, [FORGET] = now + KEEP }) do
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. text(first), '+inf')) do
      scores[key][member] = now
    end
  end
end

local function active_leases(owner, limit)
  return redis.call('ZRANGEBYLEX', ACTIVE, '[' .. owner .. '.', '(' .. owner .. '/', 'LIMIT', 0, limit)
end

-- Models: the windows of the requests and tokens of the last minute, as one list of time, requests, tokens.

local function get_model(field)
  local model = get(models, field)
  if model and model.used > now then -- the clock was set back
    local shift = model.used - now
    for i = 1, #model.window, 3 do
      model.window[i] = model.window[i] - shift
    end
    for _, note in pairs(model.demand) do
      note[1] = note[1] - shift
    end
    model.paused = model.paused and model.paused - shift
    model.used = now
  end
  return model
end

local function new_model()
  return { window = {}, sums = { 0, 0 }, demand = {}, used = now }
end

local function put_model(field, model)
  model.used = now
  put(models, field, model)
  scores[USED][field] = math.max(now, (model.paused or 0) - MODEL_KEEP)
end

-- Losing what stopped and dead owners hold

local function lose_lease(id)
  local lease = get(leases, id)
  scores[ACTIVE][id] = false
  if not lease then
    return
  end
  lease.state, lease.ended_at, lease.epochs = LOST, now, {}
  for name, reserved in pairs(lease.reserved) do
    local budget = get(budgets, name)
    if budget then
      for unit = 1, 2 do
        budget.held[unit] = math.max(0, budget.held[unit] - reserved[unit])
        budget.lost[unit] = math.min(MAX_INTEGER, budget.lost[unit] + reserved[unit])
      end
      lease.epochs[name] = budget.epoch
      put(budgets, name, budget)
    end
  end
  put(leases, id, lease)
  scores[FORGET][id] = now + KEEP
  local owner, model = owner_of(id), get_model(lease.model)
  if model and model.demand[owner] then
    model.demand[owner] = nil
    put(models, lease.model, model)
  end
end

-- Lose the leases of owners that have shown no life for a while, and remove them.
local function lose_stale_owners()
  local room = MAX_LOST_LEASES
  local stale = redis.call('ZRANGEBYSCORE', OWNERS, '-inf', text(now - LEASE), 'LIMIT', 0, MAX_STALE_OWNERS)
  for _, owner in ipairs(stale) do
    if owner ~= request.owner and room > 0 then
      local ids = active_leases(owner, room)
      for _, id in ipairs(ids) do
        lose_lease(id)
      end
      if #ids < room then
        remove_owner(owner)
      end
      room = room - #ids
    end
  end
end

-- Budgets

local function new_budget()
  return { spent = { 0, 0 }, lost = { 0, 0 }, held = { 0, 0 }, epoch = now }
end

local function has_limit(budget)
  return budget.usd ~= nil or budget.tokens ~= nil
end

-- Return true if a budget has room for an amount.
local function allows(budget, amount)
  local limits = { budget.usd or false, budget.tokens or false }
  for unit = 1, 2 do
    local limit = limits[unit]
    if limit and amount[unit] > limit - budget.spent[unit] - budget.lost[unit] - budget.held[unit] then
      return false
    end
  end
  return true
end

-- Add an amount to another one, up to the largest integer.
local function add_to(sum, amount)
  for unit = 1, 2 do
    sum[unit] = math.min(MAX_INTEGER, sum[unit] + amount[unit])
  end
end

-- Return what an amount exceeds another one by, 0 of the unit in which it does not.
local function beyond(amount, other)
  return { math.max(0, amount[1] - other[1]), math.max(0, amount[2] - other[2]) }
end

-- Return a budget as it is replied: -1 for no limit.
local function status(name, budget)
  local spent, lost, held = budget.spent, budget.lost, budget.held
  local usd, tokens, on_hold = budget.usd or -1, budget.tokens or -1, budget.holds or { 0, 0 }
  return { name, usd, tokens, spent[1], spent[2], lost[1], lost[2], held[1], held[2], on_hold[1], on_hold[2] }
end

-- A budget that was reset after Redis had lost its data is kept, so that it is not restored again.
local function is_hidden(budget)
  return not has_limit(budget) and budget.held[1] == 0 and budget.held[2] == 0 and budget.spent[1] == 0
    and budget.spent[2] == 0 and budget.lost[1] == 0 and budget.lost[2] == 0
end

-- Ending requests

-- Remove what is older than a minute.
local function expire(model)
  local window, sums, expired = model.window, model.sums, 0
  while expired < #window and window[expired + 1] + COUNTED <= now do
    sums[1], sums[2] = sums[1] - window[expired + 2], sums[2] - window[expired + 3]
    expired = expired + 3
  end
  if expired > 0 then
    model.window = {}
    for i = expired + 1, #window do
      model.window[i - expired] = window[i]
    end
  end
end

-- Record requests at a time, which may lie ahead; negative amounts are given back.
local function take(model, at, requests, tokens)
  expire(model)
  local window, sums = model.window, model.sums
  local last = #window - 2
  while last > 0 and window[last] > at do
    last = last - 3
  end
  if last > 0 and at - window[last] < RESOLUTION then
    window[last + 1] = window[last + 1] + requests
    window[last + 2] = window[last + 2] + tokens
  else
    table.insert(window, last + 3, at)
    table.insert(window, last + 4, requests)
    table.insert(window, last + 5, tokens)
  end
  sums[1], sums[2] = sums[1] + requests, sums[2] + tokens
end

-- Replace the tokens of a permit by the billed ones, and its time by that of the request.
local function correct_permit(model, lease, ended)
  local at = lease.permit_at
  if at > now + AHEAD then -- the clock was set back: it is not known where it counts now
    return
  end
  if not ended.age then
    take(model, at, -1, -lease.tokens)
    return
  end
  local tokens = ended.tokens or lease.tokens
  local sent_at = math.max(at, math.min(now, now - ended.age))
  if sent_at - at > RESOLUTION then
    take(model, at, -1, -lease.tokens)
    take(model, sent_at, 1, tokens)
  elseif tokens ~= lease.tokens then
    take(model, at, 0, tokens - lease.tokens)
  end
end

-- Put a bill in place of a reservation, which may be counted as lost already.
local function settle(name, lease, reserved, bill)
  local budget = get(budgets, name)
  if not budget then
    return
  end
  for unit = 1, 2 do
    if lease.state ~= LOST then
      budget.held[unit] = math.max(0, budget.held[unit] - reserved[unit])
    elseif lease.epochs[name] == budget.epoch then
      budget.lost[unit] = math.max(0, budget.lost[unit] - reserved[unit])
    end
    if bill then
      budget.spent[unit] = math.min(MAX_INTEGER, budget.spent[unit] + bill[unit])
      budget.lost[unit] = math.min(MAX_INTEGER, budget.lost[unit] + bill[unit + 2])
    end
  end
  put(budgets, name, budget)
end

-- End a lease of the caller: settle its bills, correct its permit and release its claims.
local function finish(ended)
  local id = ended.lease
  local lease = owner_of(id) == request.owner and get(leases, id)
  if not lease or lease.state == ENDED then
    return
  end
  for name, reserved in pairs(lease.reserved) do
    settle(name, lease, reserved, ended.bills and ended.bills[name])
  end
  if lease.permit_at or ended.pause then
    local model = get_model(lease.model) or new_model()
    if ended.pause then
      model.paused = math.max(model.paused or 0, now + ended.pause)
    end
    if lease.permit_at then
      correct_permit(model, lease, ended)
    end
    put_model(lease.model, model)
  end
  if lease.state == LOST then -- its claims may be forgotten
    raise_horizon(request.owner, now)
  end
  scores[ACTIVE][id] = false
  if lease.prefixes then
    put(leases, id, { state = ENDED, ended_at = now, prefixes = lease.prefixes, reserved = {} })
    scores[FORGET][id] = now + KEEP
  else
    put(leases, id, false)
    scores[FORGET][id] = false
  end
end

-- End the leases of the caller that it does not know. If a reply was lost, they were not sent. If not, Redis has lost
-- their end, in a crash or a failover.
local function finish_unknown()
  if not request.keep then
    return
  end
  local kept = {}
  for _, id in ipairs(request.keep) do
    kept[id] = true
  end
  for _, id in ipairs(active_leases(request.owner, -1)) do
    if not kept[id] then
      if request.is_unsure then
        finish({ lease = id })
      else
        lose_lease(id)
      end
    end
  end
end
