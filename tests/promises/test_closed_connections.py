"""P2, P14: a result on which the server closes the connection stops nothing else, and ends where operators see it."""

from __future__ import annotations

import anyio
import pytest

from streamq import RedisBroker, gather, task
from streamq.errors import BrokerError, TaskFailedError
from streamq.queue.lost_commands import LOSSES, LostCommands
from tests.at_work import dead, until, working

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BIG = ("SET", "key", b"x" * 200_000)
BIGGER = ("SET", "key", b"x" * 300_000)
SMALL = ("GET", "key")
LOST = BrokerError("connection reset", code="UNKNOWN")


@task(result_ttl=60)
async def big() -> str:
    return "x" * 1_500_000


@task(result_ttl=60)
async def small(number: int) -> int:
    return number


@pytest.fixture
def short_texts(real_server):
    """A server that takes no text above 1 MiB."""
    real_server.command("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
    yield real_server
    real_server.command("CONFIG", "SET", "proto-max-bulk-len", 512 << 20)


@pytest.mark.slow
@pytest.mark.paired
async def test_one_large_result_holds_up_nothing(short_texts):
    async with RedisBroker(short_texts.url) as broker, working(broker, big, small, visibility_timeout=2) as worker:
        # Together: the result of the large one may close the connection while the others are sent.
        culprit, *handles = await broker.enqueue_many([big.call(), *(small.call(number) for number in range(40))])
        with anyio.fail_after(20):
            assert await gather(*handles) == tuple(range(40))
            with pytest.raises(TaskFailedError, match=r"proto-max-bulk-len|invalid bulk length"):
                await culprit.result()
        await until(lambda: [one["reason"] for one in dead(short_texts)] == ["refused"])
        later = await broker.enqueue(small, 41)
        with anyio.fail_after(5):
            assert await later.result() == 41
        await until(lambda: not worker.health.trouble)
        assert not worker.health.refused


def codes(errors):
    return [error.code for error in errors]


def test_the_large_one_is_found_whatever_else_is_answered():
    lost = LostCommands()
    for _ in range(LOSSES - 1):
        assert lost.note_lost([SMALL, BIG], LOST) == []
        lost.note_answered([SMALL])
        assert lost.note_lost([SMALL], LOST) == []
    errors = lost.note_lost([SMALL, BIG, BIGGER], LOST)
    assert codes(errors) == ["UNKNOWN", "CLOSED", "CLOSED"]
    assert "200,000 bytes" in str(errors[1])


def test_an_answer_to_a_large_one_ends_the_suspicion():
    """Then the connection was to blame. One to a smaller one than is known to be lost proves nothing."""
    lost = LostCommands()
    for _ in range(LOSSES):
        lost.note_lost([BIGGER], LOST)
    lost.note_answered([BIG])
    assert codes(lost.note_lost([BIG, BIGGER], LOST)) == ["UNKNOWN", "CLOSED"]
    lost.note_answered([BIGGER])
    assert lost.note_lost([BIGGER], LOST) == []


def test_a_packed_command_has_the_size_of_its_bytes_and_nothing_is_an_answer_to_nothing():
    lost = LostCommands()
    for _ in range(LOSSES - 1):
        lost.note_lost([b"x" * 200_000], LOST)
    lost.note_answered([])
    assert codes(lost.note_lost([b"x" * 200_000], LOST)) == ["CLOSED"]
