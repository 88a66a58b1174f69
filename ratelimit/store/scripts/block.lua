-- Writes entries of the blocklist and publishes what has changed; may be repeated without harm.
--
-- KEYS[1]  blocklist: a hash from "limit|key" to "<seconds when it is forgotten> <JSON>"; JSON is
--          an entry, or {"lifted": seconds} where one was lifted
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for news
-- ARGV[3]… for each entry: "limit|key", the entry as JSON, seconds that its strikes are remembered
--          after its end
--
-- An entry that begins while the last one still runs is the same strike: the later end holds. One
-- that begins later is one strike more than the last. An operator's entry (with "by") replaces what
-- is there. What began before the client was lifted is dropped.
--
-- Publishes {"blocks": [entry, …]}; returns the number of entries that have changed.

own(KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local news, latest = {}, 0

for i = 3, #ARGV, 3 do
  local field, text, memory = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local entry = cjson.decode(text)
  local stored = redis.call('HGET', KEYS[1], field)
  local last = stored and read(stored)
  if last and last.lifted then
    if entry.since <= last.lifted then
      entry = nil
    end
  elseif last and entry.since < last.since then
    -- Older news than what is there.
    last['until'] = (last.by or '') ~= '' and last['until'] or math.max(last['until'], entry['until'])
    last.strikes = math.max(last.strikes, entry.strikes)
    entry, text = last, nil
  elseif last and (entry.by or '') == '' then
    if entry.since < last['until'] then
      last['until'] = math.max(last['until'], entry['until'])
      last.strikes = math.max(last.strikes, entry.strikes)
      entry, text = last, nil
    elseif entry.since < math.max(last.since, last['until']) + memory and entry.strikes <= last.strikes then
      entry.strikes, text = last.strikes + 1, nil
    end
  end
  if entry then
    local forget = math.max(entry['until'], entry.since) + memory
    if forget > now then
      text = text or cjson.encode(entry)
      local value = string.format('%.0f %s', forget, text)
      latest = math.max(latest, forget)
      if value ~= stored then
        redis.call('HSET', KEYS[1], field, value)
        news[#news + 1] = text
      end
    end
  end
end

if redis.call('PTTL', KEYS[1]) < (latest - now) * 1000 then
  redis.call('PEXPIRE', KEYS[1], (latest - now) * 1000)
end
if #news > 0 then
  redis.call('PUBLISH', ARGV[2], '{"blocks":[' .. table.concat(news, ',') .. ']}')
end
return #news
