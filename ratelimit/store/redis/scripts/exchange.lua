-- Adds the counts of one node to the counts of all nodes, and returns the sums.
--
-- KEYS[1]  counts of this generation: a hash from client id to state
-- KEYS[2]  counts of the previous generation; read only
-- ARGV[1]  era for a new key
-- ARGV[2]  lifetime of KEYS[1] from now on in milliseconds: two generations
-- ARGV[3]  records of 96 bytes: client id (16), epoch (u32), tick (u64), 17 deltas (u32), the i-th
--          for tick - i
-- ARGV[4]  channel for hot clients; ARGV[5]  message to publish there, or empty
--
-- Returns the new states in the order of the records, 80 bytes each: epoch (u32), tick (u64),
-- 17 totals (u32), the i-th for tick - i. All numbers are little-endian; ticks are below 2^53.
-- Totals are limited to 2^32 - 1. Counts older than 16 ticks before the newer tick of both are dropped.
-- A block settles all earlier hits, and later hits have a later epoch: of two epochs, only the counts of
-- the later one are kept.

local RECORD, STATE, IDS = 96, 80, 500
local MAX = 4294967295
local ALL = '<I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4'
local NONE = string.rep('\0', 68)
local NONE_BUT_2 = string.rep('\0', 60)
local call, sub, len, unpack = redis.call, string.sub, string.len, unpack
local decode, encode = struct.unpack, struct.pack
local min = math.min

own(KEYS[1], ARGV[1])

local batch = ARGV[3]
local count = len(batch) / RECORD
local answer, writes = {}, {}

-- Returns totals (68 bytes) with deltas added that are `behind` ticks older.
local function add(totals, deltas, behind)
  if behind < 16 and sub(deltas, 9) == NONE_BUT_2 then
    -- The usual case: hits since the last exchange are in the present or the previous tick.
    local at = 4 * behind
    local a, b = decode('<I4I4', totals, at + 1)
    local c, d = decode('<I4I4', deltas)
    return sub(totals, 1, at) .. encode('<I4I4', min(a + c, MAX), min(b + d, MAX)) ..
      sub(totals, at + 9)
  end
  local a, b = {decode(ALL, totals)}, {decode(ALL, deltas)}
  for i = 1, 17 - behind do
    a[i + behind] = min(a[i + behind] + b[i], MAX)
  end
  return encode(ALL, unpack(a, 1, 17))
end

for first = 0, count - 1, IDS do
  local last = min(first + IDS, count) - 1
  local ids = {}
  for i = first, last do
    ids[#ids + 1] = sub(batch, i * RECORD + 1, i * RECORD + 16)
  end
  local states = call('HMGET', KEYS[1], unpack(ids))
  local lost, places = {}, {}
  for i = 1, #ids do
    if not states[i] then
      lost[#lost + 1] = ids[i]
      places[#places + 1] = i
    end
  end
  if #lost > 0 then
    local before = call('HMGET', KEYS[2], unpack(lost))
    for i = 1, #lost do
      states[places[i]] = before[i]
    end
  end

  local fields = {}
  for i = 1, #ids do
    local at = (first + i - 1) * RECORD
    local state = states[i]
    if not state then
      state = sub(batch, at + 17, at + RECORD)
    elseif len(state) ~= STATE then
      error({err = 'FOREIGN ' .. KEYS[1]})
    else
      -- Epoch and tick are usually the same.
      local head, deltas = sub(batch, at + 17, at + 28), sub(batch, at + 29, at + RECORD)
      local their_head = sub(state, 1, 12)
      if head == their_head then
        state = head .. add(sub(state, 13), deltas, 0)
      else
        local epoch, tick = decode('<I4I8', head)
        local their_epoch, their_tick = decode('<I4I8', their_head)
        local ahead = tick - their_tick
        if epoch > their_epoch or epoch == their_epoch and ahead > 16 then
          state = head .. deltas
        elseif epoch == their_epoch and ahead > 0 then
          state = head .. add(sub(NONE, 1, 4 * ahead) .. sub(state, 13, STATE - 4 * ahead), deltas, 0)
        elseif epoch == their_epoch and ahead >= -16 then
          state = their_head .. add(sub(state, 13), deltas, -ahead)
        end
      end
    end
    answer[first + i] = state
    fields[2 * i - 1] = ids[i]
    fields[2 * i] = state
  end
  writes[#writes + 1] = fields
end

-- Written last, so that an error above counts nothing.
for i = 1, #writes do
  call('HSET', KEYS[1], unpack(writes[i]))
end

-- Only this generation: the previous one lives long enough, and its owner was not checked.
call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[5] ~= '' then
  call('PUBLISH', ARGV[4], ARGV[5])
end
return table.concat(answer)
