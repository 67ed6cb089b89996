"""Each right of the producer and the worker in turn is taken away and given back, while all features run.

`python -m tests.rights_taken` takes every right, on both servers and both backends. A ledger says what became of each
task: see `play.py`.
"""
