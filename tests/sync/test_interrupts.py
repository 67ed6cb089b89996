"""A signal handler that raises in the middle of a call of SyncBroker: the call ends with what it raised."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import random, signal, sys
from streamq import SyncBroker, task

class SoftLimit(Exception):
    pass

@task
def send(n: int) -> None: ...

def strike(*_):
    raise SoftLimit

signal.signal(signal.SIGALRM, strike)
met, others = 0, set()
with SyncBroker(sys.argv[1]) as broker:
    for n in range(2500):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0004 + 1e-6)
            try:
                broker.enqueue(send, n, task_id=f"n{n}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except SoftLimit:
            met += 1
        except Exception as error:
            others.add(type(error).__name__)
print(met > 40, sorted(others))
"""


def test_what_it_raises_comes_out_and_the_program_lives(real_server):
    """hiredis crashed it, where the command had a number; an exception was taken for a lost connection."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, real_server.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "True []\n"), ended.stderr
