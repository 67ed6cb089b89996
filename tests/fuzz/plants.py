"""Old faults, planted on purpose: each is patched into streamq while rounds are played, to see whether it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from streamq.client import Script
from streamq.consumer import runner_pool
from streamq.consumer.events import Listeners
from streamq.consumer.left_behind import RunScope
from streamq.consumer.runner_pool import Runners
from streamq.scripts import step
from streamq.wire.bounds import Bound
from streamq.wire.delivery import Delivery

Patches = Callable[[ExitStack], None]
PLANTS: dict[str, tuple[str, Patches]] = {}  # name: the attack that must find it, and the patches


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the fault of that name in streamq; none if the name is empty. Raises KeyError if it is unknown."""
    with ExitStack() as stack:
        if name:
            PLANTS[name][1](stack)
        yield


def plant(attack: str) -> Callable[[Patches], Patches]:
    """Register a fault under its function's name."""

    def register(function: Patches) -> Patches:
        PLANTS[function.__name__.replace("_", "-")] = attack, function
        return function

    return register


@plant("messages")
def messages_are_unchecked(stack: ExitStack) -> None:
    """Numbers and steps of a message have no bounds, and what goes wrong with one ends the worker."""

    def contain(runners: Runners, delivery: Any, error: BaseException) -> None:
        raise error

    def settle(runners: Runners, delivery: Any, outcome: Any, handler: Any, duration: float) -> None:
        runners._settler.settle(delivery, outcome, duration=duration, keep=delivery.result_ttl)

    stack.enter_context(patch.object(Delivery, "check", lambda *_: None))
    stack.enter_context(patch.object(Runners, "_contain", contain))
    stack.enter_context(patch.object(Runners, "_settle", settle))


@plant("handlers")
def contexts_leak(stack: ExitStack) -> None:
    """A runner goes on with the context variables and the decimal context that a run left behind."""
    init = Runners.__init__

    def without_copies(runners: Runners, *args: Any, **options: Any) -> None:
        init(runners, *args, **options)
        runners._copy_decimal = None

    stack.enter_context(patch.object(Runners, "__init__", without_copies))
    stack.enter_context(patch.object(runner_pool, "copy_context", lambda: None))


@plant("handlers")
def scopes_stay_open(stack: ExitStack) -> None:
    """What a run left open goes on around the runs that come after it."""

    async def close(run: RunScope, name: str, error: BaseException | None = None) -> BaseException | None:
        return error

    stack.enter_context(patch.object(RunScope, "close", close))
    stack.enter_context(patch.object(RunScope, "keep", lambda *_: False))


@plant("handlers")
def listeners_are_unguarded(stack: ExitStack) -> None:
    """What a listener raises goes to who told it, and ends the worker."""

    def emit(listeners: Listeners, event: Any) -> None:
        for listener in listeners._listeners:
            listener(event)

    stack.enter_context(patch.object(Listeners, "emit", emit))


@plant("rights")
def retries_take_away_first(stack: ExitStack) -> None:
    """A retry is acknowledged before it is delayed, and nobody asks whether it may be: refused half way, it is gone."""
    postpone = step("postpone")
    source = postpone._script.source
    for line in ("ask(KEYS[3], 'ZADD')\n", "ask(KEYS[1], 'XACK')\n", "begin_settling(KEYS[1])\n",
                 "call('XACK', KEYS[1], ARGV[1], ARGV[3])\n"):  # fmt: skip
        if line not in source:
            raise ValueError(f"postpone.lua has changed: {line!r} is not in it")
        source = source.replace(line, "")
    source = source.replace("call('HSET', KEYS[4]", "call('XACK', KEYS[1], ARGV[1], ARGV[3])\ncall('HSET', KEYS[4]")
    stack.enter_context(patch.object(postpone, "_script", Script(source)))


@plant("options")
def options_are_unbounded(stack: ExitStack) -> None:
    """Any number is taken, and breaks something later."""
    stack.enter_context(patch.object(Bound, "check", lambda bound, value, what="": value))
