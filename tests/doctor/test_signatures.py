"""What `streamq doctor` says of signatures: fleets that mix, messages that workers will refuse."""

from __future__ import annotations

import pytest

from streamq import RedisBroker, SigningKeys, TaskRef, group, task
from streamq.doctor import examine
from tests.at_work import until, working
from tests.doctor.examined import STREAM, examined, one

pytestmark = pytest.mark.anyio
KEYS = SigningKeys({"a": b"a" * 32})


async def sign_one(server, **options):
    async with RedisBroker(server.url, signing=KEYS, **options) as broker:
        await broker.enqueue("send", 1)


async def codes(server, **options):
    report = await examined(server.url, **options)
    return {finding.code for finding in report.findings if finding.code.startswith("signatures")}


async def test_a_fleet_that_mixes_is_named(server):
    """Without keys by what waits; with keys by what a worker would refuse."""
    assert await codes(server) == set()
    await sign_one(server)
    assert await codes(server) == {"signatures_unchecked"}
    assert await codes(server, signing=KEYS) == set()
    server.command("XADD", STREAM, "*", "task", "send")
    report = await examined(server.url)
    assert one(report, "signatures_mixed").evidence == {"signed": 1, "unsigned": 1}
    async with RedisBroker(server.url, signing=KEYS) as broker:
        finding = one(await examine(broker), "signatures_refused")
    assert finding.message == f"1 message will be refused: 1 in {STREAM} not signed"
    assert "accept_unsigned" in finding.remedy
    assert finding.evidence["refused"] == 1
    assert finding.evidence["first"].startswith(f"{STREAM} ")
    open_for_all = SigningKeys({"a": b"a" * 32}, accept_unsigned=True)
    assert await codes(server, signing=open_for_all) == {"signatures_mixed"}
    assert await codes(server, signing=SigningKeys({"b": b"b" * 32})) == {"signatures_refused"}


async def test_what_dies_when_a_key_is_taken_away(server):
    """Delayed messages, stored schedules and dead letters as well as what waits: by place and cause."""
    async with RedisBroker(server.url, signing=KEYS) as broker:
        await broker.enqueue("send", 1)
        await broker.enqueue(TaskRef("send").options(delay=60), 2)
        await broker.schedule("nightly", "0 3 * * *", TaskRef("send"))
    server.command("XADD", STREAM, "*", "task", "send")
    letter = server.command("XADD", "queue:dead", "*", "task", "send", "reason", "rejected").decode()
    server.command("XADD", "queue:dead", "*", "raw.task", "send", "reason", "undecodable")
    report = await examined(server.url, signing=SigningKeys({"b": b"b" * 32}))
    finding = one(report, "signatures_refused")
    for part in (
        f"1 in {STREAM} signed with the unknown key 'a'", f"1 in {STREAM} not signed", "1 in queue:dead not signed",
        f"1 in {STREAM}:messages signed with the unknown key 'a'",
        "1 in queue:schedules signed with the unknown key 'a'", "5 messages",
    ):  # fmt: skip
        assert part in finding.message
    assert f"redis-cli XRANGE {STREAM} " in finding.remedy
    assert "keep that key" in finding.remedy
    async with RedisBroker(server.url, signing=KEYS) as broker:
        finding = one(await examine(broker), "signatures_refused")
    assert finding.evidence["refused"] == 2
    server.command("XDEL", "queue:dead", letter)


async def test_results_that_wait_in_workflow_groups(server, anyio_backend):
    """A key is taken away, or accept_unsigned dropped, while a result waits for the other members of its group."""

    @task
    async def give() -> None: ...

    @task(backoff=lambda attempt, error: 60.0, retries=9)
    async def late() -> None:
        raise ValueError

    old = SigningKeys({"a": b"a" * 32, "b": b"b" * 32}, sign_with="a")
    both = SigningKeys({"a": b"a" * 32, "b": b"b" * 32}, sign_with="b")
    new = SigningKeys({"b": b"b" * 32})
    members = give.call(), give.call()
    for name, keys in {"unsigned": None, "old": old, "new": both}.items():
        async with RedisBroker(server.url, signing=keys) as broker:
            await broker.start(group(*members, late.call()).then(TaskRef("takes")), workflow_id=name)
            await broker.start(
                group(*members, late.call()).then(TaskRef("takes_none").call()), workflow_id=f"{name}-free"
            )
            async with working(broker, give, late):
                await until(lambda name=name: server.command("HLEN", f"queue:join:workers:{name}.4") == 2)
                await until(lambda name=name: server.command("HLEN", f"queue:join:workers:{name}-free.4") == 2)
                await until(lambda: server.command("XLEN", STREAM) == 0)
    server.command("DEL", f"{STREAM}:messages", f"{STREAM}:delayed")  # what the results wait for is elsewhere
    finding = one(await examined(server.url, signing=new), "signatures_refused")
    for part in ("4 messages", "2 in queue:join:* not signed", "2 in queue:join:* signed with the unknown key 'a'"):
        assert part in finding.message
    assert "redis-cli HGET queue:join:workers:" in finding.remedy
    for accepted, count in ((SigningKeys({"b": b"b" * 32}, accept_unsigned=True), 2), (both, 2)):
        finding = one(await examined(server.url, signing=accepted), "signatures_refused")
        assert finding.evidence["refused"] == count
    open_for_all = SigningKeys({"a": b"a" * 32, "b": b"b" * 32}, sign_with="b", accept_unsigned=True)
    assert await codes(server, signing=open_for_all) == set()
