-- Renews a lease that is still held: 1, or 0 when it was lost.
-- KEYS  1 the lease, 2 the workers index
-- ARGV  1 ttl in ms, 2 WorkerInfo, 3 worker
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[3])
return 1
