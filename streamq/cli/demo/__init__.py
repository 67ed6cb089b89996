"""`streamq demo`: the whole queue at work on real input, the source of Python's standard library."""
