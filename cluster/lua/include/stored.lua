-- stored: what was submitted, as one string: the spec's length in two bytes (lower first; APART in the second: the data has
-- a field of its own), the level in one, the spec as msgpack, the data as JSON. Python's `packed` writes the beginning.
--
-- level_of(stored)   the level, without unpacking the spec
-- is_apart(stored)   whether the data has a field of its own
--
-- Keeps    reads only
-- Repeat   harmless

local HEAD_BYTES, APART = 3, 128

local function level_of(stored)
  return string.byte(stored, HEAD_BYTES) or 0
end

local function is_apart(stored)
  return (string.byte(stored, 2) or 0) >= APART
end

