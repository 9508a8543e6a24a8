-- Gives a worker its share of what waits, without blocking: {{stream, entry, job}, ...}
-- KEYS  1 the worker's inbox, 2-4 the model's streams (high, normal, batch), 5 the workers index
-- ARGV  1 group, 2 worker, 3 free slots, 4 prefix of leases
-- A worker takes no more than its share of a stream: asked for all they can hold, four workers divide a burst
-- of 24 as 21/1/1/1.
local group, worker, free = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Claimed without a lease, a job would be taken for lost at once.
if redis.call('EXISTS', ARGV[4] .. worker) == 0 then return {} end

local live = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
  live = live + redis.call('EXISTS', ARGV[4] .. id)
end

local claimed = {}
for i = 1, 4 do
  local stream = KEYS[i]
  local waiting = redis.call('XLEN', stream)
  if waiting > 0 and free > 0 then
    waiting = waiting - redis.call('XPENDING', stream, group)[1]
    local share = i == 1 and waiting or math.ceil(waiting / math.max(live, 1))
    if share > 0 then
      local reply = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', math.min(free, share), 'STREAMS', stream, '>')
      for _, entry in ipairs(reply and reply[1][2] or {}) do
        table.insert(claimed, {stream, entry[1], entry[2][2] or ''})
        free = free - 1
      end
    end
  end
end
return claimed
