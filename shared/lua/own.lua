-- Makes a gateway the owner of a durable request, and fences off all attempts but one: {attempt, owner before, log}, or
-- {} if it is owned by another than expected. The gateway itself is always expected: an answer may have been lost.
-- KEYS  1 owner, 2 log
-- ARGV  1 gateway, 2 the attempt that may write from now on, or '' for the next, 3 the owner expected, or '' for any,
--       4 ms that it is remembered, if Redis has lost it
local attempt, owner = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
if not owner then
  -- A Redis without persistence came back: whoever owned it knows that it did.
  if ARGV[3] ~= ARGV[1] then return {} end
  attempt, owner = '0', ARGV[1]
  redis.call('SET', KEYS[1], '', 'PX', ARGV[4])
elseif ARGV[3] ~= '' and ARGV[3] ~= owner and ARGV[1] ~= owner then
  return {}
end
local mine = ARGV[2] == '' and tonumber(attempt) + 1 or tonumber(ARGV[2])
redis.call('SET', KEYS[1], mine .. ' ' .. ARGV[1], 'KEEPTTL')
return {mine, owner, redis.call('XRANGE', KEYS[2], '-', '+')}
