-- Merges blocks into the blocklist and publishes the changes; safe to repeat.
--
-- KEYS[1]  blocks, KEYS[2] lifts, as in entries.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for changes
-- ARGV[3]… for each block: "limit|key", the block as JSON, seconds after its end for which its strikes
--          are remembered, 1 if it is new, else 0, and the texts of a bad stored block and of a bad
--          stored lift, or empty
--
-- A new block by hand supersedes the stored entries, whatever their orders. A new block by a limit that
-- begins during the last one is the same strike; one that begins later is a further strike.
--
-- Publishes {"blocks": [block, …], "changes": number of changes of the list}. Returns for each block an
-- empty text if it holds, otherwise the entry that holds, as JSON: the block, or {"lifted": [order,
-- second when it is forgotten, signature]}; then the number of changes.

own(KEYS[1], ARGV[1])
own(KEYS[2], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local news, answer, latest = {}, {}, 0

for i = 3, #ARGV, 6 do
  local field, text, memory, new = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3] == '1'
  local by_hand = string.sub(field, 1, 2) == '*|'
  local entry = cjson.decode(text)
  local last, last_text = block(KEYS[1], field, ARGV[i + 4])
  local order, forget_lift, signature = lifted(KEYS[2], field, ARGV[i + 5])
  local reply = ''

  if new and by_hand then
    local after = math.max(order, last and last.order or 0)
    if entry.order <= after then
      entry.order = after + 1
      text = text_of(entry)
      reply = text
    end
  end
  if order > 0 and entry.order <= order then
    entry = nil
    reply = string.format('{"lifted":[%.0f,%.0f,"%s"]}', order, forget_lift, signature)
  elseif last and new and not by_hand and (entry.shadow == true) == (last.shadow == true) then
    local strikes = entry.strikes
    if entry.since < last['until'] then
      strikes = math.max(strikes, last.strikes)
    elseif entry.since < math.max(last.since, last['until']) + memory and strikes <= last.strikes then
      strikes = last.strikes + 1
    end
    if entry.sig and (strikes ~= entry.strikes or not beats(field, entry, last)) then
      entry, reply = nil, last_text
    elseif not beats(field, entry, last) then
      entry, text = last, last_text
      reply = text
    end
    if entry and strikes ~= entry.strikes then
      entry.strikes = strikes
      text = text_of(entry)
      reply = text
    end
  elseif last and entry.sig and not last.sig then
    -- An unsigned entry gives way to a signed one.
  elseif last and not beats(field, entry, last) then
    if entry.order ~= last.order or beats(field, last, entry) then
      reply = last_text
    end
    entry = nil
  end

  if entry and text ~= last_text then
    local forget = math.max(entry['until'], entry.since) + memory
    if forget > now then
      redis.call('HSET', KEYS[1], field, string.format('%.0f %s', forget, text))
      latest = math.max(latest, forget)
      news[#news + 1] = text
    end
  end
  answer[#answer + 1] = reply
end

if #news > 0 then
  local changes = changed(now, KEYS[1], KEYS[2], latest)
  redis.call('PUBLISH', ARGV[2], string.format('{"blocks":[%s],"changes":%d}',
    table.concat(news, ','), changes))
end
answer[#answer + 1] = #news
return answer
