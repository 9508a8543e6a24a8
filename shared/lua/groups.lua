-- Creates the consumer group of each stream that has none, from entry 0 on: a job may have been queued before anybody
-- was there to read it. Returns how many were created.
-- KEYS  streams   ARGV  1 group, 2 a lease without which nothing is done, or ''
if ARGV[2] ~= '' and redis.call('EXISTS', ARGV[2]) == 0 then return 0 end
local created = 0
for _, stream in ipairs(KEYS) do
  local reply = redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM')
  if not reply.err then created = created + 1 end
end
return created
