"""The script by which worker processes share an endpoint's N; see `fanout_workers.leases`."""

from __future__ import annotations

#: KEYS endpoint.
#: ARGV 1 holder, 2 cap in force, 3 in flight, 4 demand, 5 whether it takes idle quota (0 or 1),
#: 6 fewest in flight in the last `window`, 7 number of the call, 8 N of the configuration,
#: 9 ttl, 10 margin, 11 window, 12 grace, all four in ms, 13 and 14: what ran at the server, and
#: the answer's `now` before that was looked up; -1 when nobody has looked; from 15 on holders that
#: are known to have ended.
#: Returns N, the part that the holder may fill, the part to come down or up to, whether it shall
#: look at the server, Redis's time in ms, and the holders that should have been heard by now. The
#: fields are described in fanout.keys.
#: It begins with a deletion of nothing, because a server that is full lets a script go on that has
#: written: a lease must not run out, and its requests be given up, while Redis is full.
RENEW = """
redis.call('HDEL', KEYS[1], '')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local key, holder, me = KEYS[1], ARGV[1], 'l:' .. ARGV[1]
local arg = {}
for i = 2, 14 do
  arg[i] = tonumber(ARGV[i])
end
local ended, silent = {}, {}
for i = 15, #ARGV do
  ended['l:' .. ARGV[i]] = true
end
local cap, in_flight, demand, spare, low, call = arg[2], arg[3], arg[4], arg[5], arg[6], arg[7]
local ttl, margin, window, grace = arg[9], arg[10], arg[11], arg[12]
local function number(field)
  return tonumber(redis.call('HGET', key, field) or '')
end
local n = math.floor(number('n') or number('auto') or arg[8])

-- Leases: the living, and the ones that have just run out.
local others, demands, spares, suspect = 0, {demand}, spare, false
local living, ghosts = {{low, now}}, {}
local all = redis.call('HGETALL', key)
-- What Redis keeps of this holder: nothing, where it had a part and this is no first call, or less
-- than the cap in force, means that Redis has lost data.
local lost = cap > 0 or (#all == 0 and call > 1)
for i = 1, #all, 2 do
  local kind, name = string.sub(all[i], 1, 2), string.sub(all[i], 3)
  if kind == 'l:' then
    local f = {}
    for figure in string.gmatch(all[i + 1], '%d+') do
      f[#f + 1] = tonumber(figure)
    end
    local part, expiry, its_grace = f[1], f[3], f[7]
    if ended[all[i]] then
      expiry = math.min(expiry, now)
    end
    if all[i] == me then
      -- A call that was given up and arrives late must not shrink what a later one has granted.
      if f[4] > call then
        return {n, part, part, 0, now}
      end
      lost = part < cap
    elseif expiry <= now then
      redis.call('HDEL', key, all[i])
      if its_grace > 0 and part > 0 then
        ghosts['g:' .. name] = {part, expiry, expiry + its_grace}
      end
    else
      if now - (expiry - ttl) > 2 * margin then
        silent[#silent + 1] = name
      end
      others = others + part
      demands[#demands + 1] = f[2]
      spares = spares + f[6]
      if expiry - now < 2 * margin then
        suspect = true  -- nearly a ghost: nothing is taken off for it
      else
        living[#living + 1] = {f[5], expiry - ttl}
      end
    end
  elseif kind == 'g:' then
    local part, since, till = string.match(all[i + 1], '(%d+) (%d+) (%d+)')
    part, since, till = tonumber(part), tonumber(since), tonumber(till)
    if name == holder then
      till = math.min(till, now + margin)  -- it is back, and has aborted what it had
    end
    ghosts[all[i]] = {part, since, till}
  end
end

-- What ran at the server when somebody looked, less what the living had there at least, is the
-- most that the dead can have left. A sample {load, looked after, looked before} waits until all
-- of the living have told what they had meanwhile; what comes out, {left, looked after}, stays.
local function figures(field)
  local found = {}
  for figure in string.gmatch(redis.call('HGET', key, field) or '', '%d+') do
    found[#found + 1] = tonumber(figure)
  end
  return found
end
local sample, verdict = figures('s'), figures('v')
if arg[13] >= 0 and (#sample < 3 or now - sample[2] > window) then
  sample = {arg[13], arg[14], now}
  redis.call('HSET', key, 's', string.format('%d %d %d', sample[1], sample[2], sample[3]))
end
if #sample == 3 then
  local left, complete = sample[1], true
  for _, one in ipairs(living) do
    if one[2] < sample[3] then
      complete = false
    elseif one[2] - window <= sample[2] then
      left = left - one[1]
    end
  end
  if complete then
    verdict = {math.max(0, left), sample[2]}
    redis.call('HSET', key, 'v', string.format('%d %d', verdict[1], verdict[2]))
    redis.call('HDEL', key, 's')
  end
end
local haunted = 0
for field, ghost in pairs(ghosts) do
  -- It has begun nothing since its margin: what was seen later can only have become less.
  if #verdict == 2 and ghost[2] - margin <= verdict[2] then
    ghost[1] = math.min(ghost[1], verdict[1])
  end
  if ghost[1] <= 0 or ghost[3] <= now then
    redis.call('HDEL', key, field)
  else
    redis.call('HSET', key, field, string.format('%d %d %d', ghost[1], ghost[2], ghost[3]))
    haunted = haunted + ghost[1]
  end
end
local look = 0
if suspect or haunted > 0 then
  local auditor, till = string.match(redis.call('HGET', key, 'a') or '', '^(.*) (%d+)$')
  if not auditor or auditor == holder or tonumber(till) <= now then
    redis.call('HSET', key, 'a', string.format('%s %d', holder, now + 2 * margin))
    look = 1
  end
else
  redis.call('HDEL', key, 'a', 's', 'v')
end

-- Max-min fair: the smallest demands are met in full, the rest is divided evenly. What nobody
-- demands is held in equal parts, so that a first request finds a permit.
table.sort(demands)
local left, target = math.max(0, n - haunted), 0
for i = 1, #demands do
  local given = math.min(demands[i], math.floor(left / (#demands - i + 1)))
  if demands[i] == demand then
    target = given
  end
  left = left - given
end
if spare == 1 then
  target = target + math.ceil(left / spares)
end
-- What is in flight beyond the cap is counted, but nothing may follow it: after a fence it is what
-- is being aborted, and others may have its place.
local part = math.max(cap, math.min(target, n - others - haunted))
-- After a loss of data nobody grows for the length of a lease: until then, whoever holds a part
-- that Redis knows nothing of has called, or fenced itself.
if lost then
  redis.call('HSET', key, 'r', string.format('%d', now + ttl))
  part = cap
elseif (number('r') or 0) > now then
  part = cap
end
redis.call('HSET', key, me, string.format('%d %d %d %d %d %d %d',
  math.max(part, in_flight), demand, now + ttl, call, low, spare, grace))
return {n, part, target, look, now, unpack(silent)}
"""
