-- Appends all jobs of one request, or none: {1, stream, entry, worker, ...}, or {0, waiting} if the queue is full.
-- KEYS  1-3 the model's streams (high, normal, batch), 4 the workers index
-- ARGV  1 group, 2 how many jobs may wait, 3 index of the class stream, 4 dispatch method, 5 prefix of leases,
--       6 prefix of inboxes, 7 random seed, 8.. jobs
-- `worker` is the one whose inbox was chosen, or ''. Leases and inboxes carry the model's hash tag, so that everything read here lies in one slot.
local group, method = ARGV[1], ARGV[4]
local class_stream = KEYS[tonumber(ARGV[3])]

-- Entries delivered and not yet settled, in all and by consumer.
local function pending(stream)
  local summary = redis.pcall('XPENDING', stream, group)
  local by_consumer = {}
  if summary.err then return 0, by_consumer end
  for _, row in ipairs(summary[4] or {}) do by_consumer[row[1]] = tonumber(row[2]) end
  return summary[1], by_consumer
end

local waiting, running = 0, {}
for i = 1, 3 do waiting = waiting + redis.call('XLEN', KEYS[i]) end
-- That was what waits and runs. Where even that fits, and nobody is chosen by load, what runs need not be counted.
if method ~= 'pull' or waiting + #ARGV - 7 > tonumber(ARGV[2]) then
  for i = 1, 3 do
    local count, by_consumer = pending(KEYS[i])
    waiting = waiting - count
    for id, n in pairs(by_consumer) do running[id] = (running[id] or 0) + n end
  end
end

local workers = {}
if method ~= 'pull' then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local lease = redis.call('GET', ARGV[5] .. id)
    local readable, info = pcall(cjson.decode, lease or 'null')
    if readable and type(info) == 'table' and info.state == 'ready' and info.slots then
      local inbox = ARGV[6] .. id
      local length = redis.call('XLEN', inbox)
      waiting = waiting + length - pending(inbox)
      table.insert(workers, {id = id, inbox = inbox, held = length + (running[id] or 0), slots = info.slots})
    end
  end
end

-- A request of more jobs than may wait is taken by an empty queue only.
if waiting > 0 and waiting + #ARGV - 7 > tonumber(ARGV[2]) then return {0, waiting} end

local function with_room()
  local found = {}
  for _, worker in ipairs(workers) do
    if worker.held < worker.slots then table.insert(found, worker) end
  end
  return found
end

-- An inbox, or the model's stream when all are full: there the first free worker takes it.
math.randomseed(tonumber(ARGV[7]))
local function choose()
  local candidates = with_room()
  if #candidates == 0 then return class_stream, '' end
  local chosen = candidates[math.random(#candidates)]
  if method == 'shortest_queue' then
    for _, worker in ipairs(candidates) do
      if worker.held / worker.slots < chosen.held / chosen.slots then chosen = worker end
    end
  end
  chosen.held = chosen.held + 1
  return chosen.inbox, chosen.id
end

local reply = {1}
for i = 8, #ARGV do
  local stream, worker = choose()
  table.insert(reply, stream)
  table.insert(reply, redis.call('XADD', stream, '*', 'job', ARGV[i]))
  table.insert(reply, worker)
end
return reply
