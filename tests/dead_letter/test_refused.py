"""P11: dead letters of messages that were refused for their signature are replayed once the cause is gone."""

from __future__ import annotations

import pytest

from streamq import RedisBroker, SigningKeys, current_delivery, group, task
from streamq.dead_letter import DeadLetterQueue
from streamq.errors import DedupKeyHeldError, SignatureError, UndecodableError
from tests.at_work import burst, dead, entries, until, working

pytestmark = pytest.mark.paired

OLD, NEW = b"o" * 32, b"n" * 32
ONLY_OLD, ONLY_NEW = SigningKeys({"old": OLD}), SigningKeys({"new": NEW})
BOTH = SigningKeys({"old": OLD, "new": NEW}, sign_with="new")
OPEN = SigningKeys({"new": NEW}, accept_unsigned=True)
STANDARD = "queue:standard"


def opened(server, signing=None):
    return RedisBroker(server.url, signing=signing)


def noting(ran, **options):
    @task(name="note", **options)
    async def note(*args, **kwargs) -> int:
        ran.append((args, kwargs, current_delivery().task_id))
        return len(ran)

    return note


async def refused_by(server, signing, *tasks):
    """Let a worker with these keys refuse what waits."""
    async with opened(server, signing) as broker:
        await burst(broker, *tasks)
    (letter,) = dead(server)
    assert letter["error_type"] == "streamq.errors.SignatureError"


@pytest.mark.parametrize(
    ("sender", "operator"), [(ONLY_OLD, BOTH), (None, OPEN)], ids=["the key is back", "unsigned is accepted"]
)
@pytest.mark.parametrize("by_filter", [False, True])
async def test_it_runs_as_what_it_was(server, sender, operator, by_filter):
    """With its id, its arguments byte for byte, its headers; signed anew, so workers need neither key nor option."""
    ran = []
    note = noting(ran)
    async with opened(server, sender) as broker:
        sent = await broker.enqueue(note.options(task_id="mine", headers={"a": 1}, retries=3), 2.50, word="é")
    await refused_by(server, ONLY_NEW, note)
    async with opened(server, operator) as broker:
        letters = DeadLetterQueue(broker=broker)
        if by_filter:
            assert await letters.replay(error_type="SignatureError") == ["mine"]
        else:
            assert await letters.replay(task_id=sent.task_id, retries=5) == "mine"
    (entry,) = entries(server, STANDARD)
    assert (entry["id"], entry["headers"], entry["retries"]) == ("mine", '{"a":1}', "3" if by_filter else "5")
    assert entry["sig"].startswith("v1:new:")
    assert dead(server) == []
    async with opened(server, ONLY_NEW) as broker:
        await burst(broker, note)
    assert ran == [((2.5,), {"word": "é"}, "mine")]


async def test_the_error_names_what_works(server):
    """`dlq replay` says what is missing. With exactly that it replays; other keys, or none, change nothing."""
    note = noting([])
    async with opened(server, ONLY_OLD) as broker:
        await broker.enqueue(note, 1)
    await refused_by(server, ONLY_NEW, note)
    for signing, why in (
        (ONLY_NEW, "is signed with the unknown key 'old'; accepted here: 'new'; add that key if it is yours"),
        (OPEN, "is signed with the unknown key 'old'"),
        (SigningKeys({"old": b"x" * 32}), "signed with another key of this id"),
        (None, "was refused for its signature and this broker has no keys: give --signing-keys FILE"),
    ):
        async with opened(server, signing) as broker:
            letters = DeadLetterQueue(broker=broker)
            (letter,) = await letters.peek()
            with pytest.raises(SignatureError, match=f"^dead letter {letter.entry_id} ") as caught:
                await letters.replay_entry(letter)
            assert why in str(caught.value)
            assert await letters.replay(limit=10) == []
    assert len(dead(server)) == 1
    assert entries(server, STANDARD) == []


async def test_it_is_checked_in_full(server):
    """Changed, moved to another stream, not whole, or no message: it stays, though its letter says otherwise."""
    note = noting([])
    async with opened(server, ONLY_OLD) as broker:
        await broker.enqueue(note, 1)
        await refused_by(server, ONLY_NEW, note)
        ((_, flat),) = server.command("XRANGE", "queue:dead", "-", "+")
        server.command("DEL", "queue:dead")
        origin = flat[flat.index(b"origin") + 1]
        for change in (
            {b"[1]": b"[2]"}, {b"standard": b"bulk"}, {origin: b"queue:standard x"}, {b"raw.task": b"raw.tusk"},
            {b"raw.sig": b"raw.gis"}, {b"undecodable": b"rejected"}, {b"streamq.errors.SignatureError": b"ValueError"},
        ):  # fmt: skip
            assert any(part in change for part in flat)
            server.command("XADD", "queue:dead", "*", *(change.get(part, part) for part in flat))
        server.command("XADD", "queue:dead", "*", *flat, "cut", "7 bytes, 0 of 3 fields")
        letters = DeadLetterQueue(broker=broker)
        for letter in await letters.peek():
            with pytest.raises((SignatureError, UndecodableError)):
                await letters.replay_entry(letter)
        assert await letters.replay(limit=100) == []
    async with opened(server, SigningKeys({"old": OLD}, accept_unsigned=True)) as broker:
        server.command("DEL", "queue:dead")
        server.command("XADD", STANDARD, "*", "task", "note", "args", "no json")
        await refused_by(server, ONLY_NEW, note)
        with pytest.raises(UndecodableError, match="cannot be replayed: field 'args' is 'no json'"):
            await DeadLetterQueue(broker=broker).replay(task_id=dead(server)[0]["task_id"])
    assert entries(server, STANDARD) == []


async def test_it_holds_its_deduplication_key_again(server):
    """It holds it still: nothing in it was believed. A task that came after it is not disturbed."""
    ran = []
    note = noting(ran)
    async with opened(server, ONLY_OLD) as broker:
        await broker.enqueue(note.options(dedup_key="k", dedup_window="until_done", task_id="first"), 1)
    await refused_by(server, ONLY_NEW, note)
    async with opened(server, BOTH) as broker:
        letters = DeadLetterQueue(broker=broker)
        server.command("SET", "queue:dedup:k", "other")
        with pytest.raises(DedupKeyHeldError):
            await letters.replay(task_id="first")
        assert await letters.replay(limit=1) == []
        server.command("SET", "queue:dedup:k", "first")
        assert await letters.replay(task_id="first") == "first"
        assert server.command("PTTL", "queue:dedup:k") > 0
        await burst(broker, note)
    assert len(ran) == 1
    assert server.command("EXISTS", "queue:dedup:k") == 0


def make_due(server):
    """Make the only delayed task due now."""
    (member,) = server.command("ZRANGE", f"{STANDARD}:delayed", 0, -1)
    server.command("ZADD", f"{STANDARD}:delayed", 1, member)


async def workflow(server, first, second, note):
    """Run the members of a group: the first by a worker with these keys, the second by one with those. Then `note`."""

    @task
    async def one() -> str:
        return "a"

    @task(retries=1, backoff=60.0)
    async def two() -> float:
        if current_delivery().attempt == 1:
            raise ValueError
        return 2.5

    async with opened(server, first) as broker:
        await broker.start(group(one.call(), two.call()).then(note.options(delay=60), "x"), workflow_id="w")
        async with working(broker, one, two):
            await until(lambda: server.command("HLEN", "queue:join:workers:w.3") == 1)
            await until(lambda: server.command("ZCARD", f"{STANDARD}:delayed") == 1)
    make_due(server)
    async with opened(server, second) as broker, working(broker, one, two):
        await until(lambda: not server.command("EXISTS", "queue:join:workers:w.3"))
    make_due(server)


@pytest.mark.parametrize(
    ("first", "between", "last"), [(ONLY_OLD, BOTH, BOTH), (None, OPEN, OPEN)], ids=["rotation", "introduction"]
)
async def test_a_group_goes_on_once_its_cause_is_gone(server, first, between, last):
    """A key is taken away, or accept_unsigned dropped, while a result waits for the others: the letter has them all."""
    ran = []
    note = noting(ran, result_ttl=60.0)
    await workflow(server, first, between, note)
    await refused_by(server, ONLY_NEW, note)
    (letter,) = dead(server)
    assert "the result of member 1 of 2 of the group is" in letter["error"]
    async with opened(server, last) as broker:
        assert await DeadLetterQueue(broker=broker).replay(task_id="w.3") == "w.3"
    async with opened(server, ONLY_NEW) as broker:
        await burst(broker, note)
        assert await broker.handle("w.3").result(timeout=5) == 1
    assert ran == [((["a", 2.5], "x"), {}, "w.3")]


async def test_a_group_is_complete_while_unsigned_results_are_accepted(server):
    """The first step of introducing signing loses none: results from before wait beside those that are signed."""
    ran = []
    note = noting(ran)
    await workflow(server, None, OPEN, note)
    async with opened(server, OPEN) as broker:
        await burst(broker, note)
    assert ran == [((["a", 2.5], "x"), {}, "w.3")]
