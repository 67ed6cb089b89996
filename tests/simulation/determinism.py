"""Everything that chance decides, decided by a seed: the same seed is the same history, byte for byte.

trio shuffles the tasks that can run with a generator of its own; under Hypothesis it sorts them
first, and that is asked for here. Ids, jitter and names come from `random` and `secrets`. What
is left is the order of sets of objects, which goes by their addresses: the tests that compare
logs find it where it matters.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import anyio
import trio._core._run as scheduler

from streamq.consumer.loop_watchdog import Watchdog
from streamq.queue import sending
from tests.simulation.process import suspendable

sent_id: ContextVar[str] = ContextVar("sent_id", default="")  # the latest id that was made for this task's message


async def _nobody_watches(_: Watchdog) -> None:
    """Stand in for the watchdog of the event loop: its thread lives in real time."""
    await anyio.sleep_forever()


@contextmanager
def determined(seed: int) -> Iterator[None]:
    """Have chance go by `seed`, and nothing depend on real time."""
    dice = random.Random(seed)
    make_id = sending.new_task_id

    def new_task_id() -> str:
        made = make_id()
        sent_id.set(made)
        return made

    def token_bytes(size: int | None = None) -> bytes:
        return dice.randbytes(size or 32)

    def urandom(size: int) -> bytes:
        return dice.randbytes(size)

    random.seed(seed)
    scheduler._r.seed(seed)
    collecting, level = gc.isenabled(), logging.root.manager.disable
    gc.disable()  # finalizers run when the last reference goes, and not at some allocation
    logging.disable(logging.CRITICAL)
    patches: list[Any] = [
        patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True),
        patch.object(Watchdog, "watch_forever", _nobody_watches),
        patch.object(sending, "new_task_id", new_task_id),
        patch("secrets.token_bytes", token_bytes),
        patch.object(sending, "urandom", urandom),
    ]
    for each in patches:
        each.start()
    try:
        with suspendable():
            yield
    finally:
        for each in patches:
            each.stop()
        logging.disable(level)
        if collecting:
            gc.enable()
