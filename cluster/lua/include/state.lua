-- state: read and write the state of a task, and find the session that runs it. Needs token.lua.
--
-- The field `<id>.` of a bucket holds
--   <state> <attempt> <delivery> <lost> <queued ms> <wait ms> <ran ms> <settled> <node> <payload>
-- "-" stands for what the task does not have. `wait` leads from the last time that it was queued to its last start, and
-- `ran` on from there to its end. `settled` is the delivery that was committed last, `node` the one that ran it last,
-- and `payload` the result or the last error ("+": it has a field of its own, `<id>.end`). When a task is due,
-- {sNN}:scheduled alone says.
-- A running task stands in an in-flight set, with a token (see token.lua), and its state stays as it was before. So whoever finds a state that is not terminal asks `holder` whether the task runs.
--
-- state_of(id, text)                       the state as a table; `text` false: queued, or running, for the first time
-- state_text(state)                        the table as text again
-- holder(sessions, inflight_prefix, id)    session and token of the run; nil if the task does not run
-- ended_ms(state)                          when a terminal task ended
--
-- Keeps    reads only
-- Repeat   harmless

local TERMINAL = {succeeded = true, dead = true, cancelled = true}
local DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ' -- Crockford's base32: an id begins with the time at which it was made

local function made_ms(id)
  local ms = 0
  for at = 1, 10 do ms = ms * 32 + (string.find(DIGITS, string.sub(id, at, at), 1, true) or 1) - 1 end
  return ms
end

local function state_of(id, text)
  if not text then
    return {state = 'queued', attempt = 0, delivery = 0, lost = 0, queued = made_ms(id), node = '-', payload = ''}
  end
  local state, token, ran, settled, node, payload =
    string.match(text, '^(%S+) (%S+ %S+ %S+ %S+ %S+) (%S+) (%S+) (%S+) ?(.*)$')
  local out = token_of(token or '')
  out.state, out.ran, out.settled = state or 'queued', tonumber(ran), tonumber(settled)
  out.node, out.payload = node or '-', payload or ''
  return out
end

local function number(value)
  return value and string.format('%.0f', value) or '-'
end

local function state_text(s)
  return table.concat({s.state, number(s.attempt), number(s.delivery), number(s.lost), number(s.queued), number(s.wait),
    number(s.ran), number(s.settled), s.node, s.payload}, ' ')
end

local function ended_ms(s)
  return (s.queued or 0) + (s.wait or 0) + (s.ran or 0)
end

local function holder(sessions, inflight_prefix, id)
  for _, session in ipairs(redis.call('SMEMBERS', sessions)) do
    local token = redis.call('HGET', inflight_prefix .. session, id)
    if token then return session, token end
  end
end

