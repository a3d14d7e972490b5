-- Grants all claims or none.
-- KEYS: for each claim its counter, and the sorted set of its leases (the same key again if it has a window).
-- ARGV: the name of the lease, or "" to only read; the milliseconds until it expires; then for each claim its window in
-- ms (0 means none), its limit, its amount, the ms for which its counter is kept, its initial value ("" if unknown).
-- Gives {0, now, used…} if all were granted; {1, now, used…, whole…, index, wait} if the claim at this index is
-- above its limit, or with the index -1 if it only read; {2, now, indexes…} if these claims need an initial value.
local SLOTS = 60
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease, life = ARGV[1], tonumber(ARGV[2])

local function claim(index)
  local at = 2 + 5 * (index - 1)
  return {
    key = KEYS[2 * index - 1], leases = KEYS[2 * index], window = tonumber(ARGV[at + 1]),
    most = tonumber(ARGV[at + 2]), amount = tonumber(ARGV[at + 3]), life = ARGV[at + 4], spent = ARGV[at + 5],
  }
end

local function look_at_window(one)
  one.width = one.window / SLOTS
  one.slot = math.floor(now / one.width)
  local kept = redis.call('HMGET', one.key, 'total', 'oldest', 'newest')
  if kept[3] and tonumber(kept[3]) > one.slot + SLOTS then -- the clock was set back; it would stay full
    redis.call('DEL', one.key)
    kept = {}
  end
  one.used, one.fresh = tonumber(kept[1]) or 0, not kept[1]
  one.oldest, one.newest = tonumber(kept[2]) or one.slot, tonumber(kept[3]) or one.slot
  local first, before = one.slot - SLOTS, one.oldest
  while one.oldest < first and one.oldest <= one.newest do
    local gone = redis.call('HGET', one.key, one.oldest)
    if gone then
      one.used = one.used - tonumber(gone)
      redis.call('HDEL', one.key, one.oldest)
    end
    one.oldest = one.oldest + 1
  end
  if one.oldest > before then
    redis.call('HSET', one.key, 'total', one.used, 'oldest', one.oldest)
  end
end

local function look_at_level(one)
  local kept = redis.call('HMGET', one.key, 'spent', 'held')
  one.fresh = not kept[1]
  if one.fresh then
    redis.call('DEL', one.leases) -- left over from a counter that was lost
    one.spent = tonumber(one.spent)
    one.held = 0
  else
    one.spent, one.held = tonumber(kept[1]), tonumber(kept[2]) or 0
    local over = redis.call('ZRANGEBYSCORE', one.leases, '-inf', now, 'LIMIT', 0, 1000)
    for _, member in ipairs(over) do
      one.held = math.max(0, one.held - tonumber(string.match(member, '%d+$')))
      redis.call('ZREM', one.leases, member)
    end
    if #over > 0 then redis.call('HSET', one.key, 'held', one.held) end
    -- the clock was set back: what dead processes held would be held until then; who lives renews it
    local most = string.format('%.0f', now + life)
    local late = redis.call('ZRANGEBYSCORE', one.leases, '(' .. most, '+inf', 'LIMIT', 0, 1000)
    for _, member in ipairs(late) do redis.call('ZADD', one.leases, most, member) end
  end
  one.used = one.spent and one.spent + one.held
end

local function wait_for(one)
  if one.window == 0 then return one.spent + one.amount <= one.most and 0 or -1 end -- 0: when others settle
  local left = one.used + one.amount - one.most
  for slot = one.oldest, one.newest do
    left = left - (tonumber(redis.call('HGET', one.key, slot)) or 0)
    if left <= 0 then return math.max(1, math.ceil((slot + SLOTS + 1) * one.width - now)) end
  end
  return -1
end

local function book_window(one)
  local slot = math.max(one.slot, one.newest)
  if one.fresh then redis.call('HSET', one.key, 'oldest', slot) end
  redis.call('HINCRBY', one.key, slot, one.amount)
  redis.call('HINCRBY', one.key, 'total', one.amount)
  redis.call('HSET', one.key, 'newest', slot)
  redis.call('PEXPIRE', one.key, math.ceil(one.window + 2 * one.width))
  one.newest = slot
end

local function book_level(one)
  if one.fresh then redis.call('HSET', one.key, 'spent', one.spent) end
  redis.call('HINCRBY', one.key, 'held', one.amount)
  redis.call('PEXPIRE', one.key, one.life)
  if one.amount > 0 then
    redis.call('ZADD', one.leases, now + life, lease .. ':' .. string.format('%.0f', one.amount))
    redis.call('PEXPIRE', one.leases, one.life)
  end
end

local claims, unknown, full = {}, {2, now}, nil
for index = 1, #KEYS / 2 do
  local one = claim(index)
  if one.window > 0 then look_at_window(one) else look_at_level(one) end
  claims[index] = one
  if not one.used then
    unknown[#unknown + 1] = index - 1
  elseif not full and one.amount > 0 and one.used + one.amount > one.most then
    full = index
  end
end
if #unknown > 2 then return unknown end

if not full and lease ~= '' then
  for _, one in ipairs(claims) do
    if one.window > 0 then book_window(one) else book_level(one) end
    one.used = one.used + one.amount
  end
end

local looked = full or lease == ''
local told = {looked and 1 or 0, now}
for _, one in ipairs(claims) do told[#told + 1] = one.used end
if not looked then return told end
for _, one in ipairs(claims) do
  local counts = one.window > 0 and one.used > 0
  told[#told + 1] = counts and math.max(0, math.ceil((one.newest + SLOTS + 1) * one.width - now)) or 0
end
told[#told + 1] = full and full - 1 or -1
told[#told + 1] = full and wait_for(claims[full]) or -1
return told
