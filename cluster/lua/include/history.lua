-- history: write down how a task's attempts ended, other than by success.
--
-- The field `<id>.history` of the task's bucket has one line for each, oldest first:
--   [outcome, ended ms, started ms or 0, attempt or 0, delivery, session, node or "", error type, error message]
-- Outcomes: retrying, released, dead, lost, cancelled, replayed, refused (an outcome that came too late to count).
--
-- remember(bucket, id, outcome, now, run, session, kind, message)    `run` has attempt, delivery, queued, wait
-- reason(payload)                                                    type and message of an error as Python wrote it
--
-- Keeps    at most HISTORY_MAX lines and HISTORY_BYTES bytes; a success writes no line, as the state tells all
-- Repeat   as harmless as the calling script's own check makes it; the same refusal is written once

local HISTORY_MAX, HISTORY_BYTES, TEXT_BYTES = 20, 8192, 300

local function short(text)
  if #text <= TEXT_BYTES then return text end
  local last = TEXT_BYTES -- bytes 128 to 191 continue a character: cut before the byte that begins it
  while last > 0 and string.byte(text, last + 1) >= 128 and string.byte(text, last + 1) < 192 do last = last - 1 end
  return string.sub(text, 1, last) .. '…'
end

local function reason(payload)
  local ok, told = pcall(cjson.decode, payload)
  if not ok or type(told) ~= 'table' then return '', '' end
  return type(told.type) == 'string' and told.type or '', type(told.message) == 'string' and told.message or ''
end

local function remember(bucket, id, outcome, now, run, session, kind, message)
  local lines, first = redis.call('HGET', bucket, id .. '.history') or '', 0
  local started = run.wait and (run.queued or 0) + run.wait or 0
  local which = string.sub(cjson.encode({run.delivery, session}), 2, -2)
  if outcome == 'refused' then
    local same = string.gsub(which, '%p', '%%%0')
    if string.find(lines, '%["refused",[^\n]*,' .. same .. ',') then return end
  end
  lines = lines .. '["' .. outcome .. '",' .. string.format('%.0f,%.0f,%.0f,', now, started, run.attempt) .. which .. ','
    .. string.sub(cjson.encode({short(kind), short(message)}), 2) .. '\n'
  local count = select(2, string.gsub(lines, '\n', ''))
  while count > HISTORY_MAX or #lines - first > HISTORY_BYTES do
    first = string.find(lines, '\n', first + 1, true)
    count = count - 1
  end
  redis.call('HSET', bucket, id .. '.history', string.sub(lines, first + 1))
end

