-- Leases live on.  KEYS: of each a counter, and its leases.  ARGV: milliseconds; then of each its member.
local LEAST = 3600000 -- ms that a counter is kept at least of which something is held
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
