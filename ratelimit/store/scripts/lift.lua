-- Merges lifts into the blocklist, takes off the blocks that they end, and publishes what has
-- changed; may be repeated without harm.
--
-- KEYS[1]  blocks, KEYS[2] lifts, as in entries.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for news
-- ARGV[3]… for each lift: "limit|key", its order, the epoch second until which it is remembered,
--          and 1 if it is new, else 0
--
-- A new lift follows what is there, whatever the orders. It is remembered for as long as the block
-- that it ended would have been. Of too many lifts, the one of some that ends first is forgotten.
--
-- Publishes {"lifts": ["limit|key", …], "lifted": [seconds, …], "marks": [[order, seconds when it is
-- forgotten], …], "changes": how often the list has changed}, of which earlier versions read the first
-- two. Returns four values for each lift:
-- 1 if it ended a block, else 0; its order and when it is forgotten, as texts; the block that is
-- newer and holds, else an empty text. Then how many have changed.

own(KEYS[1], ARGV[1])
own(KEYS[2], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local answer, fields, times, marks, latest = {}, {}, {}, {}, 0

for i = 3, #ARGV, 4 do
  local field, order, forget = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local last, last_text, last_forget = block(KEYS[1], field)
  local before, forget_before = lifted(KEYS[2], field)
  if ARGV[i + 3] == '1' then
    order = math.max(order, before + 1, last and last.order + 1 or 0)
  end
  local found, holds = 0, ''
  if last and last.order > order then
    holds = last_text
  elseif last then
    redis.call('HDEL', KEYS[1], field)
    forget = math.max(forget, last_forget)
    found = 1
  else
    -- One that is damaged goes, too.
    redis.call('HDEL', KEYS[1], field)
  end
  order, forget = math.max(order, before), math.max(forget, forget_before)
  if found == 1 or order ~= before or forget ~= forget_before then
    redis.call('HSET', KEYS[2], field, string.format('%.0f %.0f', forget, order))
    latest = math.max(latest, forget)
    fields[#fields + 1] = cjson.encode(field)
    times[#times + 1] = string.format('%.0f', math.floor(order / 1000000))
    marks[#marks + 1] = string.format('[%.0f,%.0f]', order, forget)
  end
  answer[#answer + 1] = found
  answer[#answer + 1] = string.format('%.0f', order)
  answer[#answer + 1] = string.format('%.0f', forget)
  answer[#answer + 1] = holds
end

for _ = 1, redis.call('HLEN', KEYS[2]) - LIFTS do
  local some = redis.call('HRANDFIELD', KEYS[2], 20, 'WITHVALUES')
  local first, ends
  for i = 1, #some, 2 do
    local forget = tonumber(string.match(some[i + 1], '^(%d+) %d+$'))
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
