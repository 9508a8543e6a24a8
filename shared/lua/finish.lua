-- Writes a response as it will be from now on, and the end into its log if it is not there: 1; 0 if another gateway
-- owns it; -1 if there is no record of it (Redis came back without). A log that lacks pieces goes: it would tell less.
-- KEYS  1 response, 2 owner, 3 log
-- ARGV  1 gateway, 2 the response, 3 ms that it is kept, 4 the end, 5 ms that the log is kept, 6 how many pieces it has
local owner = string.match(redis.call('GET', KEYS[2]) or '', '^%d+ (.*)$')
if owner and owner ~= ARGV[1] then return 0 end
if not owner or redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
redis.call('HSET', KEYS[1], 'response', ARGV[2], 'end', ARGV[4])
redis.call('HDEL', KEYS[1], 'job')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local pieces, ended = string.match(last and last[1] or '0-0', '^(%d+)-(%d+)$')
if pieces ~= ARGV[6] then
  redis.call('UNLINK', KEYS[3])
elseif ended == '0' then
  redis.call('XADD', KEYS[3], pieces .. '-1', 'made', '[]', 'end', ARGV[4])
end
redis.call('PEXPIRE', KEYS[3], ARGV[5])
return 1
