-- Takes entries off the blocklist, strikes and all, and publishes that; may be repeated.
--
-- KEYS[1]  blocklist, as in block.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for news
-- ARGV[3]… for each entry: "limit|key", seconds since it was to be lifted
--
-- An entry that began later than that stays: the client was blocked again. For an hour a note stays
-- in the place of another, so that a node which was cut off does not write it again. Publishes
-- {"lifts": ["limit|key", …], "lifted": [seconds, …]}; returns for each 1 if there was an entry that
-- had to go, else 0.

own(KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local found, fields, times = {}, {}, {}

for i = 3, #ARGV, 2 do
  local field, lifted = ARGV[i], now - tonumber(ARGV[i + 1])
  local stored = redis.call('HGET', KEYS[1], field)
  local last = stored and read(stored)
  -- A block begins at a whole second, up to one after the hit.
  local again = last and (last.since or last.lifted) > lifted + 1
  found[#found + 1] = stored and not again and not (last and last.lifted) and 1 or 0
  if not again then
    redis.call('HSET', KEYS[1], field, string.format('%.0f {"lifted":%.0f}', now + 3600, lifted))
    fields[#fields + 1], times[#times + 1] = field, lifted
  end
end

if redis.call('PTTL', KEYS[1]) < HOUR then
  redis.call('PEXPIRE', KEYS[1], HOUR)
end
if #fields > 0 then
  redis.call('PUBLISH', ARGV[2], cjson.encode({lifts = fields, lifted = times}))
end
return found
