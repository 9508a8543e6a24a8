-- Removes a dead worker's consumer if nothing is pending for it: 1, or 0. With anything pending, removing it would
-- lose the pending list and leave the entries where nobody finds them.
-- KEYS  1 stream   ARGV  1 group, 2 worker
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if #pending > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
