-- progress: what running tasks report of themselves is kept for a while, and who watches is told.
-- KEYS: progress...
-- ARGV: for each key: ttl_ms payload
for i = 1, #KEYS do
  local ttl, payload = ARGV[2 * i - 1], ARGV[2 * i]
  call('SET', KEYS[i], payload, 'PX', ttl)
  call('PUBLISH', KEYS[i], payload)
end
