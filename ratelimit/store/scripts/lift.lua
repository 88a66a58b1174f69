-- Takes entries off the blocklist, strikes and all, and publishes that; may be repeated.
--
-- KEYS[1]  blocklist, as in block.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  channel for news
-- ARGV[3]… "limit|key" of each
--
-- For an hour a note stays in the entry's place, so that a node which was cut off does not write it
-- again. Publishes {"lifts": ["limit|key", …]}; returns for each 1 if there was an entry, else 0.

own(KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local found, fields = {}, {}

for i = 3, #ARGV do
  local stored = redis.call('HGET', KEYS[1], ARGV[i])
  found[i - 2] = stored and not string.find(stored, '^%d+ {"lifted"') and 1 or 0
  fields[i - 2] = ARGV[i]
  redis.call('HSET', KEYS[1], ARGV[i], string.format('%.0f {"lifted":%.0f}', now + 3600, now))
end

if redis.call('PTTL', KEYS[1]) < HOUR then
  redis.call('PEXPIRE', KEYS[1], HOUR)
end
redis.call('PUBLISH', ARGV[2], '{"lifts":' .. cjson.encode(fields) .. '}')
return found
