-- progress: the reports of running tasks are kept, and published to their watchers.
-- KEYS: progress...
-- ARGV: for each key: ttl_ms payload
for i = 1, #KEYS do ask(KEYS[i], 'SET') end
for i = 1, #KEYS do
  call('SET', KEYS[i], ARGV[2 * i], 'PX', whole(ARGV[2 * i - 1], 1))
  publish(KEYS[i], ARGV[2 * i])
end
