-- Merges lifts into the blocklist, removes the blocks that they end, and publishes the changes; safe to
-- repeat.
--
-- KEYS[1]  blocks, KEYS[2] lifts, as in entries.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for changes
-- ARGV[3]… for each lift: "limit|key", its order, the epoch second until which it is remembered,
--          1 if it is new, else 0, its signature, or empty, and the texts of a bad stored block and of
--          a bad stored lift, or empty
--
-- A new lift supersedes the stored entries, whatever their orders. It is remembered for as long as the
-- block that it ended. If there are too many lifts, the one in a random sample that ends first is
-- deleted.
--
-- Publishes {"lifts": ["limit|key", …], "lifted": [seconds, …], "marks": [[order, second when it is
-- forgotten, signature], …], "changes": number of changes of the list}; earlier versions read the first
-- two. Returns six values for each lift: 1 if it ended a block, else 0; order, second when it is
-- forgotten, and signature of the lift that holds, as texts; a newer block that holds, or an empty text;
-- the second until which the lift should be remembered, which a signed, merged lift may lack. Then the
-- number of changes.

own(KEYS[1], ARGV[1])
own(KEYS[2], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local answer, fields, times, marks, latest = {}, {}, {}, {}, 0

for i = 3, #ARGV, 7 do
  local field, order, forget = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local signature = ARGV[i + 4]
  local last, last_text, last_forget = block(KEYS[1], field, ARGV[i + 5])
  local before, forget_before, signed_before = lifted(KEYS[2], field, ARGV[i + 6])
  if ARGV[i + 3] == '1' then
    order = math.max(order, before + 1, last and last.order + 1 or 0)
  end
  local found, holds, remember = 0, '', math.max(forget, forget_before)
  if last and last.order > order then
    holds = last_text
  elseif last then
    redis.call('HDEL', KEYS[1], field)
    remember = math.max(remember, last_forget)
    found = 1
  else
    -- Also removes a damaged entry.
    redis.call('HDEL', KEYS[1], field)
  end
  if signature == '' then
    order, forget = math.max(order, before), remember
  elseif signed_before ~= '' and (before > order or before == order and forget_before >= forget) then
    order, forget, signature = before, forget_before, signed_before
  end
  if found == 1 or order ~= before or forget ~= forget_before or signature ~= signed_before then
    redis.call('HSET', KEYS[2], field, mark(forget, order, signature))
    latest = math.max(latest, forget)
    fields[#fields + 1] = cjson.encode(field)
    times[#times + 1] = string.format('%.0f', math.floor(order / 1000000))
    marks[#marks + 1] = string.format('[%.0f,%.0f,"%s"]', order, forget, signature)
  end
  answer[#answer + 1] = found
  answer[#answer + 1] = string.format('%.0f', order)
  answer[#answer + 1] = string.format('%.0f', forget)
  answer[#answer + 1] = signature
  answer[#answer + 1] = holds
  answer[#answer + 1] = string.format('%.0f', remember)
end

for _ = 1, redis.call('HLEN', KEYS[2]) - LIFTS do
  local some = redis.call('HRANDFIELD', KEYS[2], 20, 'WITHVALUES')
  local first, ends
  for i = 1, #some, 2 do
    local forget = tonumber(string.match(some[i + 1], '^(%d+) %d+'))
    if forget and (not ends or forget < ends) then
      first, ends = some[i], forget
    end
  end
  if first then
    redis.call('HDEL', KEYS[2], first)
  end
end
if #fields > 0 then
  local changes = changed(now, KEYS[1], KEYS[2], latest)
  redis.call('PUBLISH', ARGV[2], string.format(
    '{"lifts":[%s],"lifted":[%s],"marks":[%s],"changes":%d}', table.concat(fields, ','),
    table.concat(times, ','), table.concat(marks, ','), changes))
end
answer[#answer + 1] = #fields
return answer
