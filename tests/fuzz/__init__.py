"""The fuzzer of the whole: a live worker, good tasks, and whatever can be written, given, raised or refused.

`python -m tests.fuzz --minutes 10 --backend trio --server redis --seed 7` plays rounds until the time is over, and
prints what it finds. Each round is made from its seed and number alone: `--seed 7 --round 12` plays that one again.
"""
