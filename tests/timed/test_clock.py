"""Virtual time itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from streamq.errors import ConfigurationError
from streamq.testing.clock import START, VirtualTime


async def test_a_day_takes_no_time_and_is_exact(virtual):
    """What waits goes on at its very moment, however long that is."""
    really, begun = time.monotonic(), virtual.elapsed()
    seen = []

    async def wake(after: float) -> None:
        await anyio.sleep(after)
        seen.append((after, virtual.elapsed() - begun))

    async with anyio.create_task_group() as group:
        for after in (86_400.0, 0.001, 3600.0, 2.5):
            group.start_soon(wake, after)
    assert seen == [(after, pytest.approx(after, abs=1e-6)) for after in (0.001, 2.5, 3600.0, 86_400.0)]
    assert time.monotonic() - really < 5


async def test_time_stands_still_while_something_runs(virtual):
    """Work takes no time, and neither do checkpoints."""
    begun = virtual.elapsed()
    time.sleep(0.02)  # noqa: ASYNC251 - that is the claim
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert virtual.elapsed() == begun


async def test_time_passes_while_something_runs_if_that_says_so(virtual):
    """What is due by then goes on when it may."""
    begun, woken = virtual.elapsed(), []

    async def wake() -> None:
        await anyio.sleep(1)
        woken.append(virtual.elapsed() - begun)

    async with anyio.create_task_group() as group:
        group.start_soon(wake)
        await anyio.wait_all_tasks_blocked()
        virtual.advance(2.5)
        assert virtual.elapsed() - begun == 2.5
        assert woken == []
    assert woken == [2.5]


def test_time_cannot_pass_before_the_first_run():
    """There is nobody for whom it could."""
    with pytest.raises(ConfigurationError, match="no run"):
        VirtualTime().advance(1)


async def test_the_clock_runs_as_the_event_loop_does(virtual):
    """`elapsed` may be compared with deadlines of anyio."""
    before = virtual.elapsed() - anyio.current_time()
    await anyio.sleep(1234.5)
    assert virtual.elapsed() - anyio.current_time() == before
    assert virtual.clock.elapsed() == virtual.elapsed()
    assert virtual.clock.now() == virtual.now() == pytest.approx(START + virtual.elapsed())


async def test_a_deadline_wins_over_a_later_one(virtual):
    """Timeouts are as exact as sleeps."""
    begun = virtual.elapsed()
    with anyio.move_on_after(30) as scope:
        await anyio.sleep(30.000_1)
    assert scope.cancelled_caught
    assert virtual.elapsed() - begun == pytest.approx(30, abs=1e-6)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
class TestRun:
    """`run`, which needs no pytest."""

    def test_returns_what_the_function_returns(self, backend):
        """And time goes on in the next run where it stopped."""
        virtual = VirtualTime(start=1000.0)

        async def main(seconds: float) -> float:
            await anyio.sleep(seconds)
            return virtual.now()

        assert virtual.run(main, 60, backend=backend) == pytest.approx(1060)
        assert virtual.run(main, 5, backend=backend) == pytest.approx(1065)
        assert virtual.elapsed() == pytest.approx(65)

    def test_short_waits_end_late_in_a_long_history(self, backend):
        """After a year and more a wait that is less than a float can add still ends."""
        virtual = VirtualTime()

        async def main() -> int:
            await anyio.sleep(3e7)  # noqa: ASYNC116 - of virtual time
            turns = 0
            for _ in range(200):
                await anyio.sleep(1.7e-9)
                turns += 1
            return turns

        assert virtual.run(main, backend=backend) == 200
        assert virtual.elapsed() >= 3e7

    def test_patience_waits_for_a_thread(self, backend):
        """With patience, what lives in real time has a chance before each leap."""
        virtual = VirtualTime(patience=0.5)

        async def main() -> float:
            with anyio.move_on_after(3600):
                await anyio.to_thread.run_sync(time.sleep, 0.02)
            return virtual.elapsed()

        assert virtual.run(main, backend=backend) == 0.0

    def test_without_patience_the_time_is_up(self, backend):
        """A loop that leaps waits for no thread."""
        virtual = VirtualTime()

        async def main() -> float:
            with anyio.move_on_after(3600):
                await anyio.to_thread.run_sync(time.sleep, 0.02, abandon_on_cancel=True)
            return virtual.elapsed()

        assert virtual.run(main, backend=backend) == pytest.approx(3600)


class TestValues:
    """What it is before anything runs."""

    def test_start(self):
        """A round moment, so that windows and minutes begin with it."""
        assert VirtualTime().now() == START
        assert datetime.fromtimestamp(START, UTC) == datetime(2026, 1, 1, tzinfo=UTC)

    def test_other_backends(self):
        """Nobody gets real time by mistake."""
        with pytest.raises(ConfigurationError, match="curio"):
            VirtualTime().options("curio")

    def test_repr(self):
        assert repr(VirtualTime()) == "<VirtualTime 0.000000 s after 1767225600.000>"
