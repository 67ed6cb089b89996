"""One circuit by itself: when it opens, how it is tried, and how postponed calls come back."""

from __future__ import annotations

import heapq
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.middleware.circuit_settings import CircuitSettings
from streamq.middleware.circuit_state_machine import (
    NEW,
    SLACK,
    UNNUMBERED,
    Admitted,
    CallOutcome,
    Circuit,
    Postponed,
    State,
)


def opened(rules, now=0.0):
    """Return a circuit that has just opened."""
    circuit = Circuit(rules)
    while circuit.state(now) is State.CLOSED:
        circuit.leave(now, circuit.enter(now), CallOutcome.FAILED)
    return circuit


class TestCircuit:
    def test_opens_after_failures_in_a_row(self):
        """A success in between starts the count anew."""
        circuit = Circuit(CircuitSettings(3, 10.0, 1))
        for outcome in (
            CallOutcome.FAILED,
            CallOutcome.FAILED,
            CallOutcome.SUCCEEDED,
            CallOutcome.FAILED,
            CallOutcome.FAILED,
            CallOutcome.IGNORED,
        ):
            circuit.leave(0.0, circuit.enter(0.0), outcome)
        assert circuit.state(0.0) is State.CLOSED
        circuit.leave(0.0, circuit.enter(0.0), CallOutcome.FAILED)
        assert circuit.state(0.0) is State.OPEN
        assert circuit.enter(4.0) == Postponed(6.0)

    def test_probes(self):
        """When the time is up, `half_open_max` calls go through; a success closes, a failure opens again."""
        circuit = Circuit(CircuitSettings(1, 10.0, 2))
        circuit.leave(0.0, circuit.enter(0.0), CallOutcome.FAILED)
        assert circuit.state(10.0) is State.HALF_OPEN
        one, two = circuit.enter(10.0), circuit.enter(11.0)
        assert circuit.enter(13.0) == Postponed(3.0)
        circuit.leave(13.0, one, CallOutcome.FAILED)
        assert circuit.state(13.0) is State.OPEN
        circuit.leave(14.0, two, CallOutcome.SUCCEEDED)  # of the period before: it changes nothing
        assert circuit.enter(15.0) == Postponed(8.0)
        circuit.leave(23.0, circuit.enter(23.0), CallOutcome.SUCCEEDED)
        assert circuit.state(23.0) is State.CLOSED
        assert circuit.idle(33.1)

    def test_a_cancelled_probe_makes_room(self):
        """It changes nothing, and the next call may try."""
        circuit = Circuit(CircuitSettings(1, 10.0, 1))
        circuit.leave(0.0, circuit.enter(0.0), CallOutcome.FAILED)
        circuit.leave(11.0, circuit.enter(10.0), CallOutcome.IGNORED)
        assert isinstance(circuit.enter(11.0), Admitted)

    def test_a_probe_that_hangs_makes_room(self):
        """A probe that does not end within the reset timeout does not keep the circuit open."""
        circuit = Circuit(CircuitSettings(1, 10.0, 1))
        circuit.leave(0.0, circuit.enter(0.0), CallOutcome.FAILED)
        circuit.enter(10.0)
        assert isinstance(circuit.enter(19.9), Postponed)
        assert isinstance(circuit.enter(20.0), Admitted)

    def test_calls_of_an_earlier_period_change_nothing(self):
        """Calls that began while it was closed do not close, open or prolong it later."""
        circuit = Circuit(CircuitSettings(1, 10.0, 1))
        old = [circuit.enter(0.0) for _ in range(3)]
        circuit.leave(1.0, old[0], CallOutcome.FAILED)
        circuit.leave(5.0, old[1], CallOutcome.FAILED)
        circuit.leave(5.0, old[2], CallOutcome.SUCCEEDED)
        assert circuit.enter(6.0) == Postponed(5.0)
        assert circuit.failures == 1

    @given(
        st.lists(st.tuples(st.sampled_from(["enter", *CallOutcome]), st.integers(0, 3), st.floats(0, 8)), max_size=80)
    )
    def test_limits_hold_for_any_sequence(self, steps):
        """Never more probes than allowed, never open for longer than the timeout, and it can always recover."""
        circuit = Circuit(CircuitSettings(2, 10.0, 2))
        now, inside = 0.0, []
        for what, which, pause in steps:
            now += pause
            if what == "enter":
                answer = circuit.enter(now)
                if isinstance(answer, Postponed):
                    assert 0 <= answer.after <= 10.0 + 1e-9
                else:
                    inside.append(answer)
            elif inside:
                circuit.leave(now, inside.pop(which % len(inside)), what)
            probes = [p for p in inside if p.probe is not None and p.period == circuit.period and now < p.probe + 10.0]
            assert len(probes) <= 2
        now += 20.0
        circuit.leave(now, circuit.enter(now), CallOutcome.SUCCEEDED)
        assert circuit.state(now) is State.CLOSED


class NaiveRate:
    """When a failure rate opens a circuit, by a list of everything that happened."""

    def __init__(self, rules):
        self.rules = rules
        self.calls = []

    def opens(self, now, failed):
        """Note the end of a call; return whether it opens the circuit."""
        self.calls.append((now, failed))
        tenth = self.rules.window / 10
        recent = [bad for at, bad in self.calls if at // tenth > now // tenth - 10]
        return failed and len(recent) >= self.rules.min_calls and sum(recent) / len(recent) >= self.rules.failure_rate


class TestRate:
    rules = CircuitSettings(failure_threshold=10**9, failure_rate=0.5, window=40.0, min_calls=4)

    def test_opens_by_the_share(self):
        """Half of the calls failed, never two in a row: the rate opens it, and not before `min_calls`."""
        circuit = Circuit(self.rules)
        for outcome in (CallOutcome.FAILED, CallOutcome.SUCCEEDED, CallOutcome.IGNORED, CallOutcome.SUCCEEDED):
            circuit.leave(1.0, circuit.enter(1.0), outcome)
        assert circuit.state(1.0) is State.CLOSED
        circuit.leave(1.0, circuit.enter(1.0), CallOutcome.FAILED)
        assert circuit.state(1.0) is State.OPEN

    def test_both(self):
        """Failures in a row open it as well, long before the rate has calls enough."""
        circuit = opened(CircuitSettings(failure_threshold=2, failure_rate=0.5, min_calls=100))
        assert circuit.failures == 2

    def test_the_past_does_not_count(self):
        """Failures that are older than the window are forgotten, and so is everything once it has opened."""
        circuit = Circuit(self.rules)
        for _ in range(3):
            circuit.leave(0.0, circuit.enter(0.0), CallOutcome.FAILED)
        for _ in range(2):
            circuit.leave(41.0, circuit.enter(41.0), CallOutcome.FAILED)
        assert circuit.state(41.0) is State.CLOSED

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80))
    def test_as_a_list_of_all_calls_says(self, calls):
        """It opens exactly when a list of all calls says so."""
        circuit, naive, now = Circuit(self.rules), NaiveRate(self.rules), 1000.0
        for failed, pause in calls:
            now += pause
            admitted = circuit.enter(now)
            circuit.leave(now, admitted, CallOutcome.FAILED if failed else CallOutcome.SUCCEEDED)
            if naive.opens(now, failed):
                assert circuit.state(now) is State.OPEN
                return
            assert circuit.state(now) is State.CLOSED


def released(rules, waiting, works_from, *, newcomers=0.0, until=math.inf):
    """Postpone so many at 0, and let them come back when they are due; calls before `works_from` fail.

    Calls take 10 ms. `newcomers` arrive per second from then on, none of which comes back with a number.
    Returns when each went through, (time, number or None), and how often each was postponed.
    """
    circuit = opened(rules)
    postponements, through = [0] * waiting, []
    agenda = [(0.0, 0, "arrives", number, NEW) for number in range(waiting)]
    if newcomers:
        agenda += [
            (works_from + at / newcomers, 1, "passes by", None, UNNUMBERED) for at in range(int(until * newcomers))
        ]
    heapq.heapify(agenda)
    while agenda and agenda[0][0] <= until:
        now, _, what, who, number = heapq.heappop(agenda)
        if what == "ends":
            circuit.leave(now, number, CallOutcome.SUCCEEDED if now >= works_from else CallOutcome.FAILED)
            continue
        answer = circuit.enter(now, number)
        if isinstance(answer, Admitted):
            heapq.heappush(agenda, (now + 0.01, len(through), "ends", who, answer))
            through.append((now, who))
        elif who is not None:
            postponements[who] += 1
            heapq.heappush(
                agenda, (now + answer.after, postponements[who] * waiting + who, "returns", who, answer.number)
            )
    return through, postponements


class TestRelease:
    """Postponed calls come back one by one."""

    rules = CircuitSettings(failure_threshold=1, reset_timeout=60.0, interval=0.1)

    def test_in_order_and_at_the_rate(self):
        """Closed by the first probe: each is postponed once, and they go through in order, one per interval."""
        through, postponements = released(self.rules, 2000, 0.5)
        assert [who for _, who in through] == list(range(2000))
        assert [now for now, _ in through] == pytest.approx([60 + at * 0.1 for at in range(2000)])
        assert postponements == [1] * 2000

    @pytest.mark.slow
    def test_a_long_outage_keeps_near_the_release_rate(self):
        """It opens again sixty times: the calls that come back stay near the release rate, and order is kept."""
        count, outage = 20_000, 3600.0
        through, postponements = released(self.rules, count, outage)
        probes = [now for now, _ in through if now < outage]
        assert len(probes) <= outage / 60 + 1
        blocks = count * self.rules.interval / 60
        assert sum(postponements) <= count + (outage / self.rules.interval) * (1 + math.log(blocks))
        assert max(postponements) <= outage / 60 + 2
        # Once it has closed: one per interval, in the order they came.
        after = [(now, who) for now, who in through if now >= outage]
        assert len(after) + len(probes) == count
        assert [who for _, who in after] == sorted(who for _, who in after)
        for (early, _), (late, _) in zip(after, after[30:], strict=False):
            assert late - early >= (30 - SLACK - 1) * self.rules.interval
        assert after[-1][0] - outage == pytest.approx(count * self.rules.interval, rel=0.05)

    def test_numbers_that_never_come(self):
        """Cancelled calls do not keep the others waiting once it is closed, nor in the next outage."""
        circuit = opened(self.rules)
        waits = [circuit.enter(0.0, NEW) for _ in range(1000)]
        assert waits[999] == Postponed(pytest.approx(60 + 99.9), 999)
        admitted = circuit.enter(200.0, 999)
        assert isinstance(admitted, Admitted)
        circuit.leave(200.0, admitted, CallOutcome.FAILED)
        assert circuit.enter(201.0, NEW) == Postponed(pytest.approx(59.0), 1000)

    def test_a_number_that_was_not_issued_is_replaced(self):
        """Such a call gets a new number."""
        circuit = opened(self.rules)
        assert circuit.enter(0.0, 7_000_000) == Postponed(60.0, 0)

    def test_late_together(self):
        """All workers were away: calls that are due together still go through at the rate, in order."""
        circuit = opened(self.rules)
        numbers = [circuit.enter(0.0, NEW).number for _ in range(500)]
        now, through = 10_000.0, []
        circuit.leave(now, circuit.enter(now, numbers[0]), CallOutcome.SUCCEEDED)
        agenda, held = [(now, number) for number in numbers[1:]], 0
        while agenda:
            at, number = heapq.heappop(agenda)
            answer = circuit.enter(at, number)
            if isinstance(answer, Admitted):
                through.append((at, number))
            else:
                held += 1
                heapq.heappush(agenda, (at + max(answer.after, 1e-6), number))
        assert [number for _, number in through] == numbers[1:]
        assert through[-1][0] - now == pytest.approx(49.9, abs=2)
        assert held <= 2 * 499


class TestRamp:
    rules = CircuitSettings(failure_threshold=1, reset_timeout=60.0, interval=0.1)

    @pytest.mark.slow
    def test_new_calls_ramp_up(self):
        """After it closed, new calls go through at 10/s, then 20/s, ..., and after the timeout all of them."""
        through, _ = released(self.rules, 1, 60.0, newcomers=1000, until=200.0)
        closed = next(now for now, _ in through if now > 60)
        for step in range(10):
            start = closed + 6 * step
            rate = sum(start <= now < start + 6 for now, _ in through) / 6
            assert rate == pytest.approx(min(1000, 10 * 2**step), rel=0.05)
        assert sum(closed + 60 <= now < closed + 61 for now, _ in through) == pytest.approx(1000, abs=2)

    def test_a_call_beyond_the_ramp_draws_a_number(self):
        """It comes after the calls that wait already."""
        circuit = opened(self.rules)
        for _ in range(5):
            circuit.enter(0.0, NEW)
        circuit.leave(60.0, circuit.enter(60.0, 0), CallOutcome.SUCCEEDED)
        assert [isinstance(circuit.enter(60.0, NEW), Admitted) for _ in range(2)] == [True, True]
        assert circuit.enter(60.0, NEW) == Postponed(pytest.approx(0.4), 5)
        assert circuit.enter(60.0) == Postponed(pytest.approx(0.1))
