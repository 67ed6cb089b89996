"""What an idle worker asks of its server: every command of virtual minutes, those inside scripts too."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import anyio
import pytest
import redis.exceptions

from streamq import task
from streamq.client.subscriber import Subscriber
from streamq.embedded.redis_differences import CorrectedSocket
from streamq.wire.tiers import Tier
from tests.timed.stage import OnTime, chosen_name

WINDOW = 10.0  # seconds
IN_FULL = {"hset": 1, "expire": 2}  # what a tier is told once an hour


@task
async def nothing() -> None: ...


@pytest.fixture
def commands(stage, monkeypatch):
    """Every command that the server carries out from now on: when, and its name."""
    noted: list[tuple[float, str]] = []

    class Noting(Counter):
        def __setitem__(self, name, count):
            noted.append((stage.at, name))
            super().__setitem__(name, count)

    run = CorrectedSocket._run_command

    def run_and_note(self, func, sig, args, from_script):
        if from_script:
            noted.append((stage.at, sig.name))
        return run(self, func, sig, args, from_script)

    monkeypatch.setattr(CorrectedSocket, "_run_command", run_and_note)
    monkeypatch.setattr(stage.server, "calls", Noting())
    return noted


def windows(noted):
    """Yield what every whole window of 10 s held that begins with a command."""
    times = [round(at, 3) for at, _ in noted]
    for at in sorted(set(times)):
        if at + WINDOW <= times[-1]:
            first, end = bisect_left(times, at), bisect_left(times, round(at + WINDOW, 3))
            yield Counter(name for _, name in noted[first:end])


def of_an_idle_worker(tiers):
    """Return the commands of ten seconds: what docs/worker.md has as a table."""
    return {
        "xreadgroup": 2, "ping": 1,
        "evalsha": 1, "time": 2, "zadd": tiers,  # the renewal; the second time is of the look at the delayed
        "xpending": tiers, "xinfo consumers": 1, "zrange": tiers + 1,
    }  # fmt: skip


def named(counted):
    assert counted["eval"] <= 1  # once a minute: may this user publish?
    return {name.replace("xinfo", "xinfo consumers"): count for name, count in counted.items() if name != "eval"}


@pytest.mark.parametrize("tiers", [1, 2, 3, 64])
async def test_what_an_idle_worker_asks_is_8_commands_and_3_for_each_tier_in_10_s(stage, commands, tiers):
    """In every window, whatever it begins with: no less, and no more but when a tier is told in full."""
    names = [Tier(f"t{number}", weight=1, threshold=number) for number in range(tiers)]
    async with stage.broker(tiers=names) as broker, stage.working(broker, nothing, visibility_timeout=30):
        await anyio.sleep(30)
        commands.clear()
        await anyio.sleep(120)
    found = [named(window) for window in windows(commands)]
    assert len(found) > 30
    for window in found:
        in_full = {name: window.pop(name) for name in IN_FULL if name in window}
        assert in_full in ({}, IN_FULL)
        assert window == of_an_idle_worker(tiers)


@pytest.mark.slow
async def test_no_window_of_hours_holds_more_than_20(stage, commands):
    """Three tiers for three hours: the keys of a living worker are kept, one tier at a time, once an hour."""
    lasting = []
    async with stage.broker() as broker, stage.working(broker, nothing, visibility_timeout=30):
        await anyio.sleep(30)
        commands.clear()
        while stage.at < 3 * 3600:
            await anyio.sleep(60)
            keys = [f"queue:{tier.name}:{what}:workers" for tier in broker.tiers for what in ("alive", "leases")]
            lasting += [stage.ttl(key) for key in keys]
    found = [sum(window.values()) for window in windows([one for one in commands if one[1] not in {"pttl", "eval"}])]
    assert set(found) == {17, 20}
    assert found.count(20) < 0.02 * len(found)
    assert min(lasting) >= 86_400 - 3600 - 10


@pytest.mark.slow
async def test_what_is_delayed_for_later_changes_nothing(stage, commands):
    """It is looked at as often as if there were nothing, and starts on time."""
    started = []

    @task
    async def later() -> None:
        started.append(stage.at)

    async with stage.broker() as broker, stage.working(broker, later, visibility_timeout=30):
        await broker.enqueue_many([later.options(delay=300 + number).call() for number in range(100)])
        await anyio.sleep(30)
        commands.clear()
        await anyio.sleep(60)
        found = [named(window) for window in windows(commands)]
        await anyio.sleep(400)
    assert found
    assert all(window == of_an_idle_worker(3) for window in found)
    assert started == [OnTime(300 + number) for number in range(100)]


async def test_who_may_not_listen_looks_more_often(stage, commands, monkeypatch):
    """Without the right to the wake channel nobody says that something is due earlier: a look each second."""

    async def refused(*_: object) -> None:
        raise redis.exceptions.NoPermissionError("no channel")

    async with stage.broker() as broker:
        with monkeypatch.context() as patch:
            patch.setattr(Subscriber, "subscribe", refused)
            async with stage.working(broker, nothing, visibility_timeout=30):
                await anyio.sleep(30)
                commands.clear()
                await anyio.sleep(120)
    looks = [window["time"] - window["evalsha"] for window in windows(commands)]
    assert set(looks) == {11}  # and one every 10 s for all that the channel tells


async def test_a_name_that_is_used_again_brings_its_own_lease(stage):
    """A worker that died and came back is another consumer, and the server is told its lease."""
    told = {}
    for lease in (30, 60):
        async with stage.mortal(nothing, visibility_timeout=lease, name="w") as cable:
            await anyio.sleep(1)
            flat = stage.command("HGETALL", "queue:bulk:leases:workers")
            leases = dict(zip(flat[::2], flat[1::2], strict=True))
            told |= {name: leases[name] for name in leases.keys() - told.keys()}
            cable.cut()
    assert list(map(chosen_name, told)) == ["w", "w"]
    assert list(told.values()) == [b"30000", b"60000"]


async def test_a_stranger_is_removed_from_the_tier_that_it_is_in(stage):
    """P8: a consumer that never said that it lives, and holds nothing, once it did nothing for two leases."""
    async with stage.broker() as broker, stage.working(broker, nothing, visibility_timeout=30, name="w"):
        for tier in broker.tiers:
            stage.command("XGROUP", "CREATECONSUMER", f"queue:{tier.name}", "workers", "stranger")
        await anyio.sleep(59)
        names = [consumers(stage, tier.name) for tier in broker.tiers]
        await anyio.sleep(1 + 30)
        later = [consumers(stage, tier.name) for tier in broker.tiers]
    assert all("stranger" in name for name in names)
    assert all("stranger" not in name for name in later)


async def test_what_was_handed_back_leaves_no_consumer_behind(stage):
    """The consumer that parks goes as a stranger does, once nothing is parked."""

    @task
    async def long() -> None:
        await anyio.sleep(3600)

    async with stage.broker() as broker:
        async with stage.mortal(long, visibility_timeout=30, name="giver") as cable:
            await broker.enqueue(long)
            await anyio.sleep(1)
            cable.cut()
            ((entry, giver),) = stage.pending().items()
            await broker.store.call(broker.store.settle_commands.release(giver, 1, [entry.encode()], 30))
        async with stage.working(broker, long, visibility_timeout=30, grace_period=0, name="heir"):
            await anyio.sleep(1)
            assert {entry: chosen_name(holder) for entry, holder in stage.pending().items()} == {entry: "heir"}
            assert consumers(stage, "standard") == {"giver", "heir", "released"}
            await anyio.sleep(100)
            assert consumers(stage, "standard") == {"heir"}


async def test_a_channel_on_which_something_is_said_is_not_asked(stage, commands):
    """PING is for silence: it comes 10 s after the last word, and is not sent into a conversation."""
    async with stage.broker() as broker, stage.working(broker, nothing, visibility_timeout=30):
        await anyio.sleep(31)
        commands.clear()
        for _ in range(20):
            await anyio.sleep(4)
            await broker.client.publish("queue:wake", "hello")
        assert [name for _, name in commands].count("ping") == 0
        await anyio.sleep(10.5)
        assert [name for _, name in commands].count("ping") == 1


def consumers(stage, tier):
    return {chosen_name(flat[1]) for flat in stage.command("XINFO", "CONSUMERS", f"queue:{tier}", "workers")}
