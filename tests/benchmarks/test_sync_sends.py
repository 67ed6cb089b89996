"""A plain send of a SyncBroker: how many functions of Python it calls. Time is measured by `sync_sends`."""

from __future__ import annotations

import sys

from streamq import SyncBroker
from tests.benchmarks.sync_sends import best_of, noop

MOST = 32  # it was 47


def test_a_send_calls_few_functions(shared_server):
    calls: list[str] = []

    def count(frame, event, _):
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    with SyncBroker(shared_server("redis").url) as broker:
        broker.enqueue(noop)
        sys.setprofile(count)
        try:
            broker.enqueue(noop)
        finally:
            sys.setprofile(None)
        assert len(calls) <= MOST, calls
        assert best_of(lambda: broker.enqueue(noop), 1).per_second > 0
