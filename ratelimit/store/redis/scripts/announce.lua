-- Heartbeat of a node: announces the node, reads the time and the number of live nodes, and deletes
-- a few forgotten entries of the blocklist.
--
-- KEYS[1]  nodes: a hash from node id to "<ms at which it counts as gone> <JSON>"
-- KEYS[2]  blocks, KEYS[3] lifts, as in entries.lua
-- ARGV[1]  era for a new key
-- ARGV[2]  id of the node
-- ARGV[3]  its description as JSON; empty if the node leaves
-- ARGV[4]  milliseconds after which it counts as gone
-- ARGV[5]  where to continue deleting: 0, or the value that the last call returned
--
-- Returns {seconds, microseconds, live nodes, era of the blocklist, number of its changes, where to
-- continue deleting}.

own(KEYS[1], ARGV[1])
local era = own(KEYS[2], ARGV[1])
own(KEYS[3], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f %s', now + ARGV[4], ARGV[3]))
end
redis.call('PEXPIRE', KEYS[1], HOUR)

local live = 0
local nodes = redis.call('HGETALL', KEYS[1])
for i = 1, #nodes, 2 do
  if nodes[i] ~= '' then
    local gone = tonumber(string.match(nodes[i + 1], '^(%d+) '))
    if gone and gone > now then
      live = live + 1
    else
      redis.call('HDEL', KEYS[1], nodes[i])
    end
  end
end

-- Entries extend the lifetime of the blocklist; without entries, the nodes do.
local cursors = {}
for _, key in ipairs({KEYS[2], KEYS[3]}) do
  local cursor = string.match(ARGV[5], key == KEYS[2] and '^(%d+)' or '(%d+)$') or '0'
  local page = redis.call('HSCAN', key, cursor, 'COUNT', 50)
  for i = 1, #page[2], 2 do
    local field, forget = page[2][i], tonumber(string.match(page[2][i + 1], '^(%d+) '))
    if field ~= '' and field ~= 'changes' and (not forget or forget * 1000 <= now) then
      redis.call('HDEL', key, field)
    end
  end
  cursors[#cursors + 1] = page[1]
  if redis.call('PTTL', key) < HOUR / 2 then
    redis.call('PEXPIRE', key, HOUR)
  end
end

local changes = tonumber(redis.call('HGET', KEYS[3], 'changes') or 0)
return {tonumber(time[1]), tonumber(time[2]), live, era, changes, table.concat(cursors, ' ')}
