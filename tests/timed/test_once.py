"""`once` to the second: how long a lease is kept, and how long a record lives."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from streamq import once
from streamq.errors import EffectInProgressError, EffectLostError
from tests.timed.stage import Cable, WiredServer

HOUR = 3600.0


@pytest.mark.slow
async def test_a_living_holder_keeps_its_lease(stage):
    """Ten hours in a block with a lease of 30 s and a record of 60 s: nobody takes over, and it is recorded."""
    async with stage.broker() as broker:
        async with once("k", broker=broker, lease=30, ttl=60) as effect:
            for _ in range(10):
                await anyio.sleep(HOUR)
                with pytest.raises(EffectInProgressError) as raised:
                    await once("k", broker=broker).__aenter__()
                assert 20 <= raised.value.after <= 30
            effect.record(1)
        assert stage.ttl("queue:once:k") == 60
        await anyio.sleep(59.9)
        async with once("k", broker=broker, ttl=60) as effect:
            assert effect.result == 1
        await anyio.sleep(0.2)
        assert not stage.exists("queue:once:k")


async def test_a_dead_holder_is_taken_over_when_its_lease_is_over(stage):
    """A rival that waits begins in that instant."""
    async with stage.broker() as broker:
        stage.command("HSET", "queue:once:k", "token", 1, "until", round((stage.virtual.now() + 30) * 1000))
        began = stage.at
        async with once("k", broker=broker, wait=HOUR) as effect:
            assert 29.99 <= stage.at - began <= 30.1
            assert effect.token > 1


@pytest.mark.parametrize(("away", "lost"), [(15.0, False), (45.0, True)])
async def test_a_server_that_is_away(stage, away, lost):
    """Shorter than the lease it costs nothing; longer, and the block is cancelled when the lease is over."""
    cable = Cable()
    WiredServer.cable.set(cable)
    async with stage.broker() as broker, anyio.create_task_group() as group:

        async def mended():
            await anyio.sleep(away)
            cable.mend()

        began = stage.at
        with contextlib.suppress(EffectLostError):
            async with once("k", broker=broker, lease=30):
                cable.cut()
                group.start_soon(mended)
                await anyio.sleep(100)
                assert not lost
        assert stage.at - began == pytest.approx(30 if lost else 100, abs=5)
        assert (stage.command("HGET", "queue:once:k", "result") is None) == lost
