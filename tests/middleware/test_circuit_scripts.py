"""The scripts of a circuit in Redis do the same as the pure circuit."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamq.embedded import MemoryServer
from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import NEW, UNNUMBERED, Admitted, CallOutcome, Circuit
from streamq.scripts import step

pytestmark = pytest.mark.paired("memory")

KEEP = 3_600_000
_numbers = itertools.count(1)


class Scripted:
    """The circuit of the scripts, with the methods of the pure one; times in ms."""

    def __init__(self, command, rules):
        self.command = command
        self.rules = rules
        self.name = f"c{next(_numbers)}"
        self.keys = [f"queue:circuit:{self.name}", "queue:circuits"]

    def run(self, name, keys, *arguments):
        reply = self.command("EVAL", step(name).source, len(keys), *keys, *arguments)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def field(self, name):
        value = self.command("HGET", self.keys[0], name)
        return "" if value is None else value.decode()

    def enter(self, number):
        """Return (now, state, period, failures), the number, when the probe began, and the wait."""
        rules, born = self.rules, self.field("born")
        now, state, period, failures, *_, number, began, base, due = self.run(
            "circuit_enter", self.keys, self.name, rules.reset_timeout, rules.half_open_max, repr(rules.interval), KEEP,
            born, number,
        )  # fmt: skip
        wait = None
        if due or (base and number == UNNUMBERED):
            wait = float(due or base) - now
        elif base:
            number, _, due = self.run("circuit_postpone", self.keys[:1], repr(rules.interval), KEEP, number, now, base)
            wait = float(due) - now
        return (now, state.decode(), period, failures), number, began.decode(), wait

    def leave(self, period, began, outcome):
        rules = self.rules
        now, state, period, failures, *_ = self.run(
            "circuit_leave", self.keys, self.name, rules.failure_threshold, repr(rules.failure_rate), rules.window,
            rules.min_calls, KEEP, 1000, period, began, int(outcome is CallOutcome.SUCCEEDED),
            int(outcome is CallOutcome.FAILED), "E", "e", repr(rules.interval),
        )  # fmt: skip
        return now, state.decode(), period, failures


WHAT = (
    *(("enter", who) for who in ("new", "new", "back", "back", "passing")),
    *(("run", outcome) for outcome in (CallOutcome.SUCCEEDED, CallOutcome.FAILED, CallOutcome.FAILED)),
    *(("return", outcome) for outcome in (CallOutcome.SUCCEEDED, CallOutcome.FAILED)),  # with a number, and run at once
    *(("leave", outcome) for outcome in CallOutcome),
)
PAUSES = (0, 0, 0, 1, 1, 2, 5, 10, 20, 40)
STEPS = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 99), st.sampled_from(PAUSES)), min_size=10, max_size=60
)  # fmt: skip
SETTINGS = st.builds(
    CircuitSettings, failure_threshold=st.integers(1, 3), reset_timeout=st.just(20), half_open_max=st.integers(1, 2),
    interval=st.sampled_from([1.0, 2.5, 10.0]), failure_rate=st.sampled_from([0.0, 0.5]), window=st.just(40),
    min_calls=st.integers(1, 4),
)  # fmt: skip


class Compared:
    """Does the same to both, at the times of the server, and compares all that is visible."""

    def __init__(self, command, rules):
        self.command = command
        self.scripted, self.pure = Scripted(command, rules), Circuit(rules)
        self.inside, self.numbers = [], []

    def enter(self, number):
        (now, *seen), drawn, began, held = self.scripted.enter(number)
        answer = self.pure.enter(now, number)
        self.same(seen)
        if isinstance(answer, Admitted):
            assert held is None
            assert began == ("" if answer.probe is None else str(answer.probe))
            self.inside.append((answer, seen[1], began))
        else:
            assert held == answer.after
            if number != UNNUMBERED:
                assert drawn == answer.number
                self.numbers.append(drawn)

    def leave(self, which, outcome):
        if self.inside:
            admitted, period, began = self.inside.pop(which % len(self.inside))
            now, *seen = self.scripted.leave(period, began, outcome)
            self.pure.leave(now, admitted, outcome)
            self.same(seen)

    def same(self, seen):
        pure = self.pure
        assert seen == [pure._state, pure.period, pure.failures]
        named = self.command("ZSCORE", "queue:circuits", self.scripted.name)
        assert (named is None) == (pure._state == "closed")

    def step(self, what, how, which):
        number = UNNUMBERED if how == "passing" else NEW
        if (how == "back" or what == "return") and self.numbers:
            number = self.numbers[which % len(self.numbers)]
        inside = len(self.inside)
        if what != "leave":
            self.enter(number)
        if what == "leave" or (what != "enter" and len(self.inside) > inside):
            self.leave(which if what == "leave" else -1, how)


def compare(command, rules, steps, wait):
    both = Compared(command, rules)
    for (what, how), which, pause in steps:
        wait(pause)
        both.step(what, how, which)


@pytest.mark.slow
class TestScripts:
    """The scripts do the same as the pure circuit."""

    @settings(max_examples=50)
    @given(SETTINGS, STEPS)
    def test_same_as_pure_on_a_set_clock(self, rules, steps):
        """On the embedded server, whose clock the test sets: many steps, all timeouts included."""
        name, now = f"circuit-{next(_numbers)}", [1_767_225_600.0]
        server = MemoryServer.named(name, clock=lambda: now[0])

        def wait(milliseconds):
            now[0] += milliseconds / 1000

        try:
            compare(server.execute, rules, steps, wait)
        finally:
            MemoryServer.discard(name)

    @pytest.mark.parametrize("seed", range(3))
    def test_same_order_as_pure(self, seed):
        """Many wait, it closes, they come back early, late, together, with new calls among them; and once more."""
        chance, now = random.Random(seed), [1_767_225_600.0]
        name = f"circuit-{next(_numbers)}"
        server = MemoryServer.named(name, clock=lambda: now[0])
        rules = CircuitSettings(
            failure_threshold=1, reset_timeout=1000, interval=10.0, failure_rate=0.5, window=400, min_calls=3
        )
        both = Compared(server.execute, rules)
        try:
            for _ in range(2):
                both.step("run", CallOutcome.FAILED, 0)
                for _ in range(60):
                    both.enter(NEW)
                now[0] += chance.choice([1.0, 3.0])
                both.step("run", CallOutcome.SUCCEEDED, 0)
                now[0] += 0.6  # no worker ran: all are late
                for late in (False, True):
                    for _ in range(40):
                        both.enter(chance.randrange(both.pure._head) if late else both.pure._head)
                        now[0] += chance.choice([0.0, 0.0, 0.0, 0.004])
                for _ in range(80):
                    now[0] += chance.choice([0.0, 0.0, 0.001, 0.004, 0.0085, 0.07])
                    head = both.pure._head
                    both.enter(chance.choice([chance.randrange(200), head, head + 1, NEW, UNNUMBERED]))
                now[0] += 2.0
                while both.inside:
                    both.leave(0, chance.choice([CallOutcome.SUCCEEDED, CallOutcome.IGNORED]))
        finally:
            MemoryServer.discard(name)

    def test_same_rate_as_pure(self):
        """Calls that succeed and fail, all over the window."""
        chance, now = random.Random(1), [1_767_225_600.0]
        name = f"circuit-{next(_numbers)}"
        server = MemoryServer.named(name, clock=lambda: now[0])
        rules = CircuitSettings(failure_threshold=10**9, reset_timeout=100, failure_rate=0.5, window=400, min_calls=4)
        both, opened = Compared(server.execute, rules), 0
        try:
            for _ in range(400):
                now[0] += chance.choice([0.0, 0.01, 0.04, 0.04, 0.1, 0.36, 0.4])
                both.step("run", chance.choice([CallOutcome.SUCCEEDED, CallOutcome.SUCCEEDED, CallOutcome.FAILED]), 0)
                opened += both.pure._state == "open"
        finally:
            MemoryServer.discard(name)
        assert opened > 20

    def test_same_as_pure_on_real_servers(self, real_server):
        """On servers whose clock cannot be set: timeouts of milliseconds, and the times that the server gives."""

        @settings(max_examples=10, derandomize=True)
        @given(SETTINGS, STEPS)
        def same(rules, steps):
            compare(real_server.command, rules, steps, lambda milliseconds: time.sleep(milliseconds / 4000))

        same()
