-- Puts a job back at the front with its next attempt, in place of the entry of the last: returns the new entry.
-- KEYS  1 stream of the old entry, 2 the model's front stream
-- ARGV  1 group, 2 old entry, 3 job
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return redis.call('XADD', KEYS[2], '*', 'job', ARGV[3])
