"""What a program declares, and what becomes of a run. Pure: no I/O."""
