-- epoch: read the keys in the leader's slot. A value that these scripts cannot have written counts as none.
--
-- highest(key)     the highest epoch that was given out; 0 if the value is no number
-- holder_of(key)   session and epoch of the lease; '' and 0 if it is free, unreadable, or would never run out
--
-- Keeps    reads only
-- Repeat   harmless

local EXACT_DIGITS = 15 -- most digits that a number in Lua keeps exactly

local function whole(text)
  return type(text) == 'string' and #text <= EXACT_DIGITS and string.match(text, '^%d+$') and tonumber(text) or nil
end

local function highest(key)
  return whole(redis.pcall('GET', key)) or 0
end

local function holder_of(key)
  local text = redis.pcall('GET', key)
  if type(text) ~= 'string' or redis.call('PTTL', key) < 0 then return '', 0 end
  local owner, term = string.match(text, '^(.+)|(%d+)$')
  if not whole(term) then return '', 0 end
  return owner, tonumber(term)
end

