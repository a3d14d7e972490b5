-- Counts what was actually used of granted claims.
-- KEYS: as for take.lua.
-- ARGV: the name of the lease; when it was granted; then for each claim its window in ms, the amount that was granted,
-- and the amount that was used.
local SLOTS = 60
local IDLE = 600000 -- ms for which a counter is kept of which nothing was spent
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease, granted_at = ARGV[1], tonumber(ARGV[2])

local function settle_window(key, window, granted, taken)
  local width = window / SLOTS
  if taken > granted then
    local newest = tonumber(redis.call('HGET', key, 'newest'))
    local slot = math.max(math.floor(now / width), newest or 0)
    if not newest then redis.call('HSET', key, 'oldest', slot) end
    redis.call('HINCRBY', key, slot, taken - granted)
    redis.call('HINCRBY', key, 'total', taken - granted)
    redis.call('HSET', key, 'newest', slot)
    redis.call('PEXPIRE', key, math.ceil(window + 2 * width))
    return
  end
  local slot = math.floor(granted_at / width)
  local counted = tonumber(redis.call('HGET', key, slot))
  if counted then
    local back = math.min(granted - taken, counted)
    redis.call('HINCRBY', key, slot, -back)
    redis.call('HINCRBY', key, 'total', -back)
  end
end

local function settle_level(key, leases, granted, taken)
  local kept = redis.call('HMGET', key, 'spent', 'held')
  if not kept[1] then return end -- the counter was lost; the next claim brings its initial value
  local spent, held = tonumber(kept[1]) + taken, tonumber(kept[2]) or 0
  if granted > 0 and redis.call('ZREM', leases, lease .. ':' .. string.format('%.0f', granted)) == 1 then
    held = math.max(0, held - granted)
  end
  redis.call('HSET', key, 'spent', spent, 'held', held)
  if spent == 0 and held == 0 then redis.call('PEXPIRE', key, IDLE) end
end

for index = 1, #KEYS / 2 do
  local at = 2 + 3 * (index - 1)
  local window, granted, taken = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if window > 0 then
    settle_window(KEYS[2 * index - 1], window, granted, taken)
  else
    settle_level(KEYS[2 * index - 1], KEYS[2 * index], granted, taken)
  end
end
