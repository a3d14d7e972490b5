-- Raises what counters have spent to at least these totals.
-- KEYS: counters.  ARGV: for each, the total.
for index, key in ipairs(KEYS) do
  local spent = tonumber(redis.call('HGET', key, 'spent'))
  if spent and spent < tonumber(ARGV[index]) then redis.call('HSET', key, 'spent', ARGV[index]) end
end
