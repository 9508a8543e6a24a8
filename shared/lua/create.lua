-- Stores a response as it begins, unless it is there: 1 or 0. Its owner says so again when Redis may have lost it.
-- KEYS  1 response
-- ARGV  1 the response, 2 its input items, 3 its job, 4 ms that it is kept
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'response', ARGV[1], 'items', ARGV[2], 'job', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
