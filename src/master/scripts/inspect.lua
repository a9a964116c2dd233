-- KEYS[1] the lock.
return { redis.call("GET", KEYS[1]), redis.call("PTTL", KEYS[1]) }
