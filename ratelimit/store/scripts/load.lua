-- Reads one page of the blocklist.
--
-- KEYS[1]  blocklist, as in block.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  where to go on: 0, or what the last call returned
-- ARGV[3]  about how many entries
--
-- Returns {where to go on, or 0, entry as JSON, …}. What is there from the first page to the last
-- comes at least once; what comes or goes meanwhile may be missing, and is in the news.

own(KEYS[1], ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local page = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local answer = {page[1]}
for i = 1, #page[2], 2 do
  if page[2][i] ~= '' then
    local forget, text = string.match(page[2][i + 1], '^(%d+) (.*)$')
    if forget and tonumber(forget) > now and string.sub(text, 1, 9) ~= '{"lifted"' then
      answer[#answer + 1] = text
    end
  end
end
return answer
