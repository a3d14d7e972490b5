-- Renews leases.
-- KEYS: for each lease its counter, and the sorted set of that counter's leases.
-- ARGV: milliseconds until the leases expire; then for each its member of the set.
local LEAST = 3600000 -- minimum ms for which a counter is kept while something of it is held
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for index = 1, #KEYS / 2 do
  local key, leases = KEYS[2 * index - 1], KEYS[2 * index]
  redis.call('ZADD', leases, 'XX', now + tonumber(ARGV[1]), ARGV[1 + index])
  for _, one in ipairs({key, leases}) do
    local left = redis.call('PTTL', one)
    if left >= 0 and left < LEAST then redis.call('PEXPIRE', one, LEAST) end
  end
end
