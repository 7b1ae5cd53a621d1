"""What the job store does in one step, in Lua."""

from __future__ import annotations

# KEYS job, jobs; ARGV id, spec, time
# A client that lost the reply asks again with the same time: that is no second job.
CREATE = """
local made = redis.call('HGET', KEYS[1], 'created_at')
if made then
  return made == ARGV[3] and 1 or 0
end
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'state', 'open', 'created_at', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 1
"""

# KEYS job; ARGV state, statuses…
# Cancelled is final, and a client that still feeds must not seal a paused job back to life. What is
# done is not paused: nothing of it would be left to go on with.
SET_STATE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return 0
end
local open = 0
if ARGV[1] == 'paused' and state == 'sealed' then
  open = tonumber(redis.call('HGET', KEYS[1], 'submitted') or '0')
  for i = 2, #ARGV do
    open = open - tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0')
  end
end
if ARGV[1] == 'cancelled' or state == 'open' or (ARGV[1] == 'paused' and open > 0) then
  if state ~= 'cancelled' then
    redis.call('HSET', KEYS[1], 'state', ARGV[1])
  end
end
return 1
"""

# KEYS job, settled, records; ARGV for each item: ordinal, status, record, count-as-submitted (0, 1)
# Each item has its own outcome, 1, 0 or an error in words: one that Redis refuses must not keep the
# others from ending. The record comes before its bit: a bit without a record would lose the item.
# It begins with a write that needs no memory, because Redis lets a script go on that has written:
# where Redis is full, ended items must get in, or their messages would never get out.
SETTLE = """
redis.call('HDEL', KEYS[1], '')
local known = redis.call('EXISTS', KEYS[1]) == 1
local won, counts = {}, {}
for i = 1, #ARGV, 4 do
  local outcome = 0
  local ended = known and redis.pcall('GETBIT', KEYS[2], ARGV[i])
  if ended == 0 then
    ended = redis.pcall('XADD', KEYS[3], '*', 'r', ARGV[i + 2], 'o', ARGV[i], 's', ARGV[i + 1])
    if type(ended) == 'string' then
      redis.call('SETBIT', KEYS[2], ARGV[i], 1)
      counts[ARGV[i + 1]] = (counts[ARGV[i + 1]] or 0) + 1
      if ARGV[i + 3] == '1' then
        counts['submitted'] = (counts['submitted'] or 0) + 1
      end
      outcome = 1
    end
  end
  if type(ended) == 'table' and ended.err then
    outcome = ended.err
  end
  won[#won + 1] = outcome
end
for name, count in pairs(counts) do
  redis.call('HINCRBY', KEYS[1], name, count)
end
-- What is made for a job that has been given up must not outlive it.
local left = known and redis.call('PTTL', KEYS[1]) or -1
if left >= 0 then
  redis.call('PEXPIRE', KEYS[2], left)
  redis.call('PEXPIRE', KEYS[3], left)
end
return won
"""

# KEYS job, queue, settled, records; ARGV first ordinal, next ordinal, digest of the input, 1 if the
# ordinals leave no gap, number of rejected ones, ordinal, status and record of each, messages…
# A client that lost the reply sends the same batch again: `next` makes that harmless.
SUBMIT = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  return -1
end
local next = tonumber(redis.call('HGET', KEYS[1], 'next') or '0')
if next > tonumber(ARGV[1]) then
  return 0
end
if ARGV[4] == '1' then
  if next < tonumber(ARGV[1]) then
    return -2
  end
  redis.call('HSET', KEYS[1], 'input', ARGV[3])
end
redis.call('HSET', KEYS[1], 'next', ARGV[2])
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  if redis.call('GETBIT', KEYS[3], ARGV[at]) == 0 then
    redis.call('XADD', KEYS[4], '*', 'r', ARGV[at + 2], 'o', ARGV[at], 's', ARGV[at + 1])
    redis.call('SETBIT', KEYS[3], ARGV[at], 1)
    redis.call('HINCRBY', KEYS[1], ARGV[at + 1], 1)
    redis.call('HINCRBY', KEYS[1], 'submitted', 1)
  end
  at = at + 3
end
redis.call('HINCRBY', KEYS[1], 'submitted', #ARGV - at + 1)
for i = at, #ARGV, 1000 do
  redis.call('LPUSH', KEYS[2], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
return 1
"""

# KEYS records; ARGV after, limit, bytes. The record is an entry's first field.
# Answers the cursor after the records, and the records, a line each. As one string, because the
# entries of a stream, five answers each, cost the client more than all else it does with a record.
READ = """
local last, limit, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lines, ordinals = {}, {}
while #lines < limit and room > 0 do
  local count = math.min(50, limit - #lines)
  local found = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', count)
  for _, entry in ipairs(found) do
    last = entry[1]
    lines[#lines + 1] = entry[2][2]
    ordinals[#lines] = entry[2][4] or ''
    room = room - #entry[2][2]
  end
  if #found < count then
    break
  end
end
return {last, table.concat(lines, '\\n'), ordinals}
"""

# KEYS collector; ARGV holder, ttl in ms, holder that is known to be gone or ''
# Who collects from now on.
CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and holder ~= ARGV[3] then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

# KEYS collector; ARGV holder
UNCLAIM = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
"""
