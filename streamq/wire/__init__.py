"""What lies in Redis, both ways: names of keys, fields of messages, and the values behind them. Pure: no I/O."""
