-- Put before every other script: no key is read or changed that another program made.
--
-- Each key of ours is a hash whose field with the empty name says so, followed by a random word
-- (the era) that tells one life of the key from the next.

local MARK = 'ratelimit 1 '
local HOUR = 3600000

-- Returns the era of a key of ours; a key that is not there becomes ours, for an hour at first.
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
