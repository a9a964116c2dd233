-- KEYS[1] the lock, ARGV[1] our value, ARGV[2] the ttl in milliseconds, ARGV[3] "XX" to set no missing key.
local value = redis.call("GET", KEYS[1])
if value == ARGV[1] then
  if redis.call("PTTL", KEYS[1]) < tonumber(ARGV[2]) then
    redis.call("PEXPIRE", KEYS[1], ARGV[2])
  end
  return 1
end
if not value and ARGV[3] ~= "XX" then
  redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
  return 2
end
return 0
