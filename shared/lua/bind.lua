-- Binds names to a model's weights, or refuses: {} or {name, worker that serves it, its model, its fingerprint}.
-- KEYS  1 the catalogue
-- ARGV  1 s without a sign of life after which a binding is free, 2 s that a name is remembered,
--       3 record as JSON (last_seen is filled in here), 4.. names
local now = tonumber(redis.call('TIME')[1]) + tonumber(redis.call('TIME')[2]) / 1e6
local record = cjson.decode(ARGV[3])

for i = 4, #ARGV do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  local readable, bound = pcall(cjson.decode, known or 'null')  -- what is not ours binds nothing
  if readable and type(bound) == 'table' and bound.last_seen and now - bound.last_seen < tonumber(ARGV[1])
     and (bound.fingerprint ~= record.fingerprint or bound.model ~= record.model) then
    return {ARGV[i], bound.worker, bound.model, bound.fingerprint}
  end
end
record.last_seen = now
for i = 4, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], cjson.encode(record)) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {}
