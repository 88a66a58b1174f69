-- Prepended to the scripts that change the blocklist: reads and compares entries (limiter/entry_order.py).
--
-- The blocklist is two hashes. One has a block for each "limit|key": "<second when it is forgotten>
-- <JSON>". The other has the last lift: "<second when it is forgotten> <order> <signature>"; its field
-- 'changes' counts all changes, so that a node detects a server that was set back in time.
--
-- With signing, a block has the signature in its field "sig"; without signing, a lift ends with its
-- order. Scripts can't verify signatures, so they never change signed entries: the node receives the
-- stored entry and signs again. The node also passes the text of a stored entry whose signature is
-- invalid (the bad one), which then counts as missing.

local LIFTS = 200000
local BELOW = {since = 2 ^ 33, ['until'] = 2 ^ 33, strikes = 2 ^ 31, order = 2 ^ 53}

-- Returns order, second when it is forgotten, and signature of the last lift of a client; 0, 0 and ''
-- if there is none or if it is damaged or the bad one.
local function lifted(key, field, bad)
  local value = redis.call('HGET', key, field) or ''
  local forget, order, signature = string.match(value, '^(%d+) (%d+) ?(%w*)$')
  order, forget = tonumber(order or 0), tonumber(forget or 0)
  if order >= BELOW.order or forget >= BELOW['until'] then
    return 0, 0, ''
  elseif bad and string.format('%.0f %.0f %s', forget, order, signature or '') == bad then
    return 0, 0, ''
  end
  return order, forget, signature or ''
end

-- Returns the text of a lift for the second hash.
local function mark(forget, order, signature)
  return string.format(signature == '' and '%.0f %.0f' or '%.0f %.0f %s', forget, order, signature)
end

-- Returns the block of a client, its text, and the second when it is forgotten; nil if there is none or
-- if it is damaged or the bad one. Entries of an earlier version have no order.
local function block(key, field, bad)
  local forget, text = string.match(redis.call('HGET', key, field) or '', '^(%d+) (.*)$')
  if text == bad then
    return nil
  end
  local whole, entry = pcall(cjson.decode, text or '')
  if not whole or type(entry) ~= 'table' then
    return nil
  end
  entry.order = entry.order or 0
  for name, below in pairs(BELOW) do
    local value = entry[name]
    if type(value) ~= 'number' or not (value >= 0 and value < below) then
      return nil
    end
  end
  if entry.order == 0 then
    entry.order = entry.since * 1000000
  end
  return entry, text, math.min(tonumber(forget), BELOW['until'] - 1)
end

-- Returns a block as JSON; cjson writes 14 digits of a number, and an order has 16.
local function text_of(entry)
  local order = entry.order
  entry.order = nil
  local text = cjson.encode(entry)
  entry.order = order
  return string.sub(text, 1, -2) .. string.format(',"order":%.0f}', order)
end

local function tie(entry)
  local texts = {}
  for i, name in ipairs({'node', 'by', 'reason'}) do
    texts[i] = tostring(entry[name] or '')
  end
  return tonumber(string.sub(redis.sha1hex(table.concat(texts, '\n')), 1, 12), 16)
end

-- Returns whether a block replaces another one of the same client.
local function beats(field, new, old)
  local function ranks(entry)
    local first = string.sub(field, 1, 2) == '*|' and entry.order or 0
    local real = entry.shadow == true and 0 or 1
    local key, text = tostring(entry.key or ''), tostring(entry.text or '')
    local seen = #text  -- of a string before its hash, or all of it
    if string.sub(text, -#key) == key then
      seen = seen - #key
    end
    return {first, real, entry['until'], entry.strikes, entry.order, entry.since, -seen}
  end
  local a, b = ranks(new), ranks(old)
  for i = 1, #a do
    if a[i] ~= b[i] then
      return a[i] > b[i]
    end
  end
  return tie(new) > tie(old)
end

-- Counts a change and keeps both hashes at least until an epoch second; returns the number of changes.
local function changed(now, blocks, lifts, until_)
  for _, key in ipairs({blocks, lifts}) do
    local needed = math.max((until_ - now) * 1000, HOUR)
    if redis.call('PTTL', key) < needed then
      redis.call('PEXPIRE', key, needed)
    end
  end
  return redis.call('HINCRBY', lifts, 'changes', 1)
end
