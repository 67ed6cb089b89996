-- progress: the reports of running tasks are kept, and published to their watchers.
-- KEYS: progress...
-- ARGV: for each key: ttl_ms payload
for i = 1, #KEYS do
  local ttl, payload = ARGV[2 * i - 1], ARGV[2 * i]
  call('SET', KEYS[i], payload, 'PX', ttl)
  call('PUBLISH', KEYS[i], payload)
end
