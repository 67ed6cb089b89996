"""The wire format: names of keys, fields of messages, and the values they encode. Pure: no I/O."""
