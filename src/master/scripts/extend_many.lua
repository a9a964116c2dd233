-- KEYS the locks; ARGV for each lock our value and the ttl in milliseconds. Sets no key. Returns one digit for each lock:
-- 1 ours, and lengthened; 2 missing; 0 not ours.
local digits = {}
for i, key in ipairs(KEYS) do
  local value, ttl = ARGV[2 * i - 1], ARGV[2 * i]
  -- pcall: a key of another type must not fail the other locks. The error is a table, and so not our value.
  local found = redis.pcall("GET", key)
  if found == value then
    if redis.call("PTTL", key) < tonumber(ttl) then
      redis.call("PEXPIRE", key, ttl)
    end
    digits[i] = "1"
  else
    digits[i] = found and "0" or "2"
  end
end
return table.concat(digits)
