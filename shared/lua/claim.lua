-- Gives a worker its share of what waits, without blocking: {{stream, entry, job}, ...}
-- KEYS  1 the worker's inbox, 2-4 the model's streams (high, normal, batch), 5 the workers index
-- ARGV  1 group, 2 worker, 3 free slots, 4 prefix of leases, 5 ms that a job has to have waited for this worker
-- A worker takes no more than its share of a stream: asked for all they can hold, four workers divide a burst
-- of 24 as 21/1/1/1.
local group, worker, free = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Claimed without a lease, a job would be taken for lost at once.
if redis.call('EXISTS', ARGV[4] .. worker) == 0 then return {} end

local live = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
  live = live + redis.call('EXISTS', ARGV[4] .. id)
end

-- Of the oldest job of a stream that nobody has: whether it has waited long enough.
local function is_due(stream)
  if ARGV[5] == '0' then return true end
  local now = redis.call('TIME')
  now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local of = {}
    for i = 1, #row, 2 do of[row[i]] = row[i + 1] end
    if of['name'] == group then
      local oldest = redis.call('XRANGE', stream, '(' .. of['last-delivered-id'], '+', 'COUNT', 1)[1]
      if not oldest then return false end
      local age = now - tonumber(string.match(oldest[1], '%d+'))
      return age < 0 or age >= tonumber(ARGV[5])  -- a clock that was put back must not hold a job up
    end
  end
end

local claimed = {}
for i = 1, 4 do
  local stream = KEYS[i]
  local waiting = redis.call('XLEN', stream)
  if waiting > 0 and free > 0 then
    waiting = waiting - redis.call('XPENDING', stream, group)[1]
    local share = i == 1 and waiting or math.ceil(waiting / math.max(live, 1))
    if share > 0 and (i == 1 or is_due(stream)) then
      local reply = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', math.min(free, share), 'STREAMS', stream, '>')
      for _, entry in ipairs(reply and reply[1][2] or {}) do
        table.insert(claimed, {stream, entry[1], entry[2][2] or ''})
        free = free - 1
      end
    end
  end
end
return claimed
