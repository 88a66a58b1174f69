-- Prepended to every other script, so that no key of another program is read or changed.
--
-- Each key of this program is a hash. Its field with the empty name has a mark and a random word, the
-- era, which distinguishes one life of the key from the next.

local MARK = 'ratelimit 1 '
local HOUR = 3600000

-- Returns the era of a key of this program; creates a missing key, for an hour at first.
local function own(key, era)
  if redis.call('TYPE', key).ok == 'hash' then
    local mark = redis.call('HGET', key, '')
    if mark and string.sub(mark, 1, 12) == MARK then
      return string.sub(mark, 13)
    end
  elseif redis.call('EXISTS', key) == 0 then
    redis.call('HSET', key, '', MARK .. era)
    redis.call('PEXPIRE', key, HOUR)
    return era
  end
  error({err = 'FOREIGN ' .. key})
end
