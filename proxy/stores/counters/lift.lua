-- KEYS: counters.  ARGV: what each has spent at least.
for index, key in ipairs(KEYS) do
  local spent = tonumber(redis.call('HGET', key, 'spent'))
  if spent and spent < tonumber(ARGV[index]) then redis.call('HSET', key, 'spent', ARGV[index]) end
end
