-- Reads one page of the blocklist.
--
-- KEYS[1]  blocks or lifts, as in entries.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  where to continue: 0, or the value that the last call returned
-- ARGV[3]  approximate number of entries
-- ARGV[4]  pattern of their fields
--
-- Returns {where to continue, or 0, "limit|key", value, …}. An entry that exists from the first page to
-- the last is returned at least once. Entries that come or go meanwhile may be missing; they are
-- published.

own(KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local page = redis.call('HSCAN', KEYS[1], ARGV[2], 'MATCH', ARGV[4], 'COUNT', ARGV[3])
local answer = {page[1]}
for i = 1, #page[2], 2 do
  local forget = string.match(page[2][i + 1], '^(%d+) ')
  if forget and tonumber(forget) > now and page[2][i] ~= '' then
    answer[#answer + 1] = page[2][i]
    answer[#answer + 1] = page[2][i + 1]
  end
end
return answer
