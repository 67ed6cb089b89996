"""Checks that a new waiter of a concurrency limit reaches its delayed set, where a reserved permit wakes it.

A worker delays a waiter after the server has told it to wait. A permit that is reserved in between finds nothing to
wake. So the waiter is checked after `_FIRST_CHECK` seconds, then after pauses that double, until it is delayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.middleware.concurrency_commands import LimitCommands, Waiter

log = SafeLog("streamq")

_CHECKING: Final = "checking who waits for a permit"
_LATE: Final = "a waiter may ask late, and everything else goes on"
_FIRST_CHECK: Final = 0.002  # seconds until a new waiter is checked; each pause after that is twice as long
_LONGEST_PAUSE: Final = 8.0  # seconds between two checks; after that a waiter is not checked any more
_CHECKED_AT_ONCE: Final = 500  # waiters in one command


class WaiterChecks:
    """The waiters of one limit that one worker postponed and has yet to check."""

    def __init__(self, commands: LimitCommands) -> None:
        self._commands = commands
        self._to_check: dict[Waiter, tuple[float, float]] = {}  # waiter -> when to check it, the pause before that
        self._added = anyio.Event()

    def __repr__(self) -> str:
        return f"<WaiterChecks {len(self._to_check)}>"

    def add(self, waiter: Waiter) -> None:
        """Check this waiter until it is delayed."""
        self._to_check[waiter] = (self._elapsed() + _FIRST_CHECK, _FIRST_CHECK)
        self._added.set()

    async def run_forever(self) -> None:
        """Check the waiters that are due, until cancelled."""
        while True:
            self._added = anyio.Event()
            now = self._elapsed()
            due = [waiter for waiter, (at, _) in self._to_check.items() if at <= now]
            try:
                for name in {waiter.name for waiter in due}:
                    await self._check(name, [waiter for waiter in due if waiter.name == name])
            except BrokerError as error:
                if not self._commands.store.refusals.note_failed(_CHECKING, error, then=_LATE):
                    log.info("waiters cannot be checked: %s", error, event="limit_refused")
            for waiter in due:
                self._check_again(waiter)
            first = min((at for at, _ in self._to_check.values()), default=None)
            if first is None:
                await self._added.wait()
            else:
                await anyio.sleep(max(0.0, first - self._elapsed()))

    def _elapsed(self) -> float:
        return self._commands.store.clock.elapsed()

    async def _check(self, name: str, waiters: Sequence[Waiter]) -> None:
        for at in range(0, len(waiters), _CHECKED_AT_ONCE):
            some = waiters[at : at + _CHECKED_AT_ONCE]
            _, *settled = await self._commands.store.one(self._commands.check(name, some))
            self._commands.store.refusals.note_accepted(_CHECKING)
            done = set(settled)
            for waiter in some:
                if waiter.identity.encode() in done:
                    del self._to_check[waiter]

    def _check_again(self, waiter: Waiter) -> None:
        """Check a waiter later, or stop after the longest pause."""
        if waiter in self._to_check:
            pause = 2 * self._to_check[waiter][1]
            if pause > _LONGEST_PAUSE:
                del self._to_check[waiter]
            else:
                self._to_check[waiter] = (self._elapsed() + pause, pause)
