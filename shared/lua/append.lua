-- Adds pieces to the log of a durable request: 1, also when they are there already (it was sent twice); or 0 if the
-- attempt may not write any more, the log has an end, or lacks what was before them.
-- KEYS  1 owner, 2 log
-- ARGV  1 attempt, 2 pieces before these, 3 pieces after them, 4 the pieces, 5 the end or '', 6 ms that the log is kept
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[1] then return 0 end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local written, ended = '0', false
if last then written, ended = last[2][2], last[2][5] ~= nil end
if last and written == ARGV[3] and ended == (ARGV[5] ~= '') then return 1 end
if ended or written ~= ARGV[2] then return 0 end
local fields = {'next', ARGV[3], 'made', ARGV[4]}
if ARGV[5] ~= '' then
  table.insert(fields, 'end')
  table.insert(fields, ARGV[5])
end
redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return 1
