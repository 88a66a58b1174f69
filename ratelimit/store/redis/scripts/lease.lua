-- Takes, renews or gives back the leases of an agent.
--
-- KEYS     one for each lease: a hash with "agent", who has or had it, and "until", the milliseconds
--          at which it ends
-- ARGV[1]  era for a new key
-- ARGV[2]  the agent
-- ARGV[3]  lifetime in milliseconds; 0 to give back
--
-- Returns for each key who had the lease before, empty for none, and who has it now.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local life = tonumber(ARGV[3])
local answer = {}

for i, key in ipairs(KEYS) do
  own(key, ARGV[1])
  local held = redis.call('HMGET', key, 'agent', 'until')
  local before, ends = held[1] or '', tonumber(held[2] or '') or 0
  local holder = before
  if before == ARGV[2] or life > 0 and ends <= now then
    holder = ARGV[2]
    redis.call('HSET', key, 'agent', holder, 'until', string.format('%.0f', now + life))
  end
  redis.call('PEXPIRE', key, HOUR)
  answer[2 * i - 1], answer[2 * i] = before, holder
end
return answer
