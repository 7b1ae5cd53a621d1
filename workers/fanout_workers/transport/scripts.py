"""What Redis does in one step, in Lua.

Keys and values are kombu's own: a list a queue and priority, the hash `unacked` of
`[message, exchange, routing key]` by delivery tag, the sorted set `unacked_index` of delivery
tags by the time at which they were handed out. Times are the server's, so that clocks of workers
need not agree. The stream of what is no message is ours.

Each script that writes begins with a deletion, also where there is nothing to delete: a server
that is full lets a script go on that has written, and all of these free memory or move it.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
"""

#: Adds what is no message to the stream of dead letters: function(key, limit, queue, reason,
#: message). A failure is ignored, because nothing else must wait for it.
_BURY = """
local function bury(dead, limit, queue, reason, message)
  if tonumber(limit) > 0 then
    redis.pcall('XADD', dead, 'MAXLEN', '~', limit, '*', 'queue', queue, 'reason', reason,
      'bytes', #message, 'message', string.sub(message, 1, 65536))
  end
end
"""

#: Settles what was acknowledged, then hands out messages and notes them as unacknowledged.
#:
#: KEYS: unacked, unacked_index, dead letters, then the lists of all queues for each priority,
#: highest first.
#: ARGV: how many to hand out; 1 to share them between the queues of a priority or 0 to empty one
#: after the other; for each queue 1 to note its messages or 0 (a consumer without
#: acknowledgements), as one string; bytes of the longest message; dead letters kept at most; then
#: the delivery tags to settle.
#: Returns [position in KEYS, message, ...], the position negative where the message could not be
#: noted because Lua cannot read it. An empty or too long one is a dead letter already, and its
#: place in the reply is empty: it must not fill the memory of one consumer after the other.
#:
#: Where the queues were emptied, it ends with a read of all of them: Redis then tells a client
#: that tracks keys of the next change.
FETCH = (
    _NOW
    + _BURY
    + """
local unacked, index, first = KEYS[1], KEYS[2], 4
local want, fair, noting = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3]
local longest, limit = tonumber(ARGV[4]), ARGV[5]
local width = #noting
-- Also without tags, because these fail, before anything is taken, where a key is of a wrong type.
local tags = #ARGV > 5 and {unpack(ARGV, 6)} or {''}
redis.call('HDEL', unacked, unpack(tags))
redis.call('ZREM', index, unpack(tags))

local out = {}
local function note(message)
  local ok, decoded = pcall(cjson.decode, message)
  local properties = ok and type(decoded) == 'table' and decoded.properties
  local tag = type(properties) == 'table' and properties.delivery_tag
  if type(tag) ~= 'string' then
    return false
  end
  local info = type(properties.delivery_info) == 'table' and properties.delivery_info or {}
  local function text(value)
    return cjson.encode(type(value) == 'string' and value or '')
  end
  -- The first one stays: another one with its tag must not take its place.
  redis.call('HSETNX', unacked, tag,
    '[' .. message .. ', ' .. text(info.exchange) .. ', ' .. text(info.routing_key) .. ']')
  redis.call('ZADD', index, now, tag)
  return true
end
local function take(key, count)
  local taken = redis.call('RPOP', KEYS[key], count) or {}
  local place = (key - first) % width + 1
  for _, message in ipairs(taken) do
    local noted = string.sub(noting, place, place) == '0'
    if #message == 0 or #message > longest then
      bury(KEYS[3], limit, KEYS[key], 'empty or too long', message)
      message, noted = '', false
    elseif not noted then
      noted = note(message)
    end
    out[#out + 1] = noted and key or -key
    out[#out + 1] = message
  end
  return #taken
end

for level = first, #KEYS, math.max(width, 1) do
  local open = {}
  for key = level, level + width - 1 do
    open[#open + 1] = key
  end
  while want > 0 and #open > 0 do
    local share = fair and math.ceil(want / #open) or want
    local still = {}
    for _, key in ipairs(open) do
      local ask = math.min(share, want)
      if ask > 0 then
        local got = take(key, ask)
        want = want - got
        if got == ask then
          still[#still + 1] = key
        end
      end
    end
    open = still
  end
end
if want > 0 and width > 0 then
  redis.call('EXISTS', unpack(KEYS, first))
end
return out
"""
)

#: Puts off the redelivery of what is held. KEYS: unacked_index. ARGV: delivery tags.
RENEW = (
    _NOW
    + """
redis.call('ZREM', KEYS[1], '')
local scores = {}
for _, tag in ipairs(ARGV) do
  scores[#scores + 1] = now
  scores[#scores + 1] = tag
end
return redis.call('ZADD', KEYS[1], 'XX', unpack(scores))
"""
)

#: Lists what was handed out too long ago. KEYS: unacked, unacked_index. ARGV: how many seconds
#: ago, how many messages at most. Returns [deadline, tag, entry of unacked, ...].
EXPIRED = """
local time = redis.call('TIME')
local deadline = string.format('%.6f', time[1] + time[2] / 1000000 - tonumber(ARGV[1]))
local out = {deadline}
for _, tag in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', deadline, 'BYSCORE',
    'LIMIT', 0, ARGV[2])) do
  local entry = redis.call('HGET', KEYS[1], tag)
  if entry then
    out[#out + 1] = tag
    out[#out + 1] = entry
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return out
"""

#: Puts one message back into its queues, if it is unacknowledged and was handed out before the
#: deadline. KEYS: unacked, unacked_index, the queues' lists. ARGV: tag, RPUSH to be the next or
#: LPUSH to be the last, deadline or +inf, message. Returns 1 if it did.
RESTORE = """
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if score and ARGV[3] ~= '+inf' and tonumber(score) > tonumber(ARGV[3]) then
  return 0
end
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
for queue = 3, #KEYS do
  redis.call(ARGV[2], KEYS[queue], ARGV[4])
end
return 1
"""

#: Makes a dead letter of what is no message, and forgets that it was handed out.
#: KEYS: unacked, unacked_index, dead letters. ARGV: delivery tag of an entry of `unacked` that is
#: to be removed, or empty; the entry, or what was in a queue; dead letters kept at most; queue;
#: reason. Returns 1 unless there is no such entry any more.
DISCARD = (
    _BURY
    + """
local tag, message = ARGV[1], ARGV[2]
local asked = tag ~= ''
if not asked then
  local ok, decoded = pcall(cjson.decode, message)
  local properties = ok and type(decoded) == 'table' and decoded.properties
  tag = type(properties) == 'table' and properties.delivery_tag
end
if type(tag) == 'string' then
  local entry = redis.call('HGET', KEYS[1], tag)
  -- The tag may be that of another one.
  if entry and (entry == message or string.sub(entry, 1, #message + 1) == '[' .. message) then
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
  elseif asked then
    return 0
  end
end
redis.call('HDEL', KEYS[1], '')
bury(KEYS[3], ARGV[3], ARGV[4], ARGV[5], message)
return 1
"""
)
