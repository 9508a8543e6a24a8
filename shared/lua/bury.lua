-- Adds a job to the dead letters: its entry. Once, also when it is told again because the first answer was lost.
-- KEYS  1 the model's dead letters   ARGV  1 job, 2 reason, 3 workers, 4 how many are kept
for _, row in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 20)) do
  if row[2][2] == ARGV[1] then return row[1] end
end
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'job', ARGV[1], 'reason', ARGV[2], 'workers', ARGV[3])
