"""What a program declares (tasks, options, retries, cron), and the decision after a run. Pure: no I/O."""
