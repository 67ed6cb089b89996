"""`streamq demo`: runs the queue on real input, the source files of Python's standard library."""
