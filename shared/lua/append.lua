-- Adds pieces to the log of a durable request: 1, also when they are there already (it was sent twice); or 0 if the
-- attempt may not write any more, the log has an end, or lacks what was before them.
-- KEYS  1 owner, 2 log
-- ARGV  1 attempt, 2 pieces before these, 3 pieces after them, 4 the pieces, 5 the end or '', 6 ms that the log is kept
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[1] then return 0 end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local entry = ARGV[3] .. (ARGV[5] == '' and '-0' or '-1')
if last and last[1] == entry then return 1 end
if (last and last[1] or '0-0') ~= ARGV[2] .. '-0' then return 0 end
if ARGV[5] == '' then
  redis.call('XADD', KEYS[2], entry, 'made', ARGV[4])
else
  redis.call('XADD', KEYS[2], entry, 'made', ARGV[4], 'end', ARGV[5])
end
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return 1
