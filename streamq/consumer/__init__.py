"""One member of the consumer group: it reads, runs, settles, renews leases and sends what is due."""
