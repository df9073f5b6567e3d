-- token: what an in-flight set says of a task that runs: <attempt> <delivery> <lost> <queued ms> <wait ms>.
--
-- token_of(text)      the token as a table with these names
-- node_of(session)    the node's name in the session's
--
-- Keeps    reads only
-- Repeat   harmless

local function token_of(text)
  local attempt, delivery, lost, queued, wait = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {attempt = tonumber(attempt) or 0, delivery = tonumber(delivery) or 0, lost = tonumber(lost) or 0,
    queued = tonumber(queued), wait = tonumber(wait)}
end

local function node_of(session)
  return string.match(session, '^(.*)/') or session
end

