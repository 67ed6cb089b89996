"""One member of the consumer group: it reads deliveries, runs them, settles them, renews leases and ticks schedules."""
