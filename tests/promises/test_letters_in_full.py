"""P14: the dead letter of a message has all that a replay uses, whatever was refused; and the log says what is so."""

from __future__ import annotations

import anyio
import pytest

from streamq import Backoff, RedisBroker, current_delivery, task
from streamq.consumer import dead_lettering, set_aside
from streamq.dead_letter import DeadLetterQueue
from streamq.queue.settle_commands import SettleCommands
from streamq.wire.acl import acl_rules
from tests.at_work import burst, dead, pending, until, working

pytestmark = [pytest.mark.paired, pytest.mark.slow]

MANY = 40
FULL = {
    "priority": "77", "retries": "0", "timeout": "30000", "result_ttl": "60000", "headers": '{"tenant":"acme"}',
    "dedup_until": "done",
}  # fmt: skip
tenants: list[object] = []
nexts: list[int] = []
alarms: list[str] = []
gate: list[anyio.Event] = []


@task
async def alarm(letter: dict[str, object]) -> None:
    alarms.append(str(letter["task_id"]))


@task(on_exhausted=alarm)
async def pay(number: int, fails: bool) -> int:
    tenants.append(current_delivery().headers.get("tenant"))
    await gate[0].wait()
    if fails:
        raise OSError("no bank")
    return number


@task
async def after(number: int) -> None:
    nexts.append(number)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The pauses between two tries are short here."""
    for some in (tenants, nexts, alarms):
        some.clear()
    gate[:] = [anyio.Event()]
    monkeypatch.setattr(set_aside, "_PAUSE", Backoff(base=0.01, factor=2.0, cap=0.03))
    monkeypatch.setattr(set_aside, "LEFT_PAUSE", 0.05)


@pytest.fixture
def rights(real_server):
    """Return a function that gives a user the rights of a worker, but for some words of them; it returns the URL."""
    rules = acl_rules(RedisBroker(real_server.url).keys, ["worker"]).line("app").replace("PASSWORD", "pw").split()

    def give(*minus: str) -> str:
        assert all(one in rules for one in minus if one[0] == "~")
        kept = [word for word in rules if word not in minus]
        real_server.command(*kept, *(one for one in minus if one[0] == "-"))
        return real_server.url.replace("://", "://app:pw@")

    yield give
    real_server.command("ACL", "DELUSER", "app")


async def send(server, count: int, *, fails: bool = False) -> None:
    """Send first steps of workflows, each with all fields that a replay keeps; return when they all run."""
    for number in range(count):
        then = f'[{{"send":"queue:standard","fields":["task","after","id","a{number}","args","[{number}]"]}}]'
        fields = {"task": "pay", "id": f"p{number}", "args": f"[{number},{str(fails).lower()}]", "then": then, **FULL}
        flat = [part for pair in fields.items() for part in pair]
        server.command("SET", f"queue:dedup:k{number}", f"p{number}", "EX", 100)
        server.command("XADD", "queue:standard", "*", *flat, "dedup", f"k{number}")
    await until(lambda: len(tenants) == count)


def assert_full(letter) -> None:
    number = letter["task_id"][1:]
    assert letter["then"].startswith('[{"send":"queue:standard"')
    assert letter["dedup"] == f"k{number}"
    assert {name: letter.get(name) for name in FULL} == FULL
    assert letter["args"].startswith(f"[{number},")
    assert letter["died_at"]


@pytest.mark.parametrize("fails", [False, True], ids=["acknowledgement", "dead letter"])
async def test_a_right_that_comes_and_goes_costs_nothing(real_server, rights, fails):
    """Each letter is whole, and says why; no consequence is lost. A replay goes on with its workflow."""
    async with RedisBroker(rights()) as broker, RedisBroker(real_server.url) as operator:
        async with working(broker, pay, after, alarm, concurrency=MANY) as worker:
            await send(real_server, MANY, fails=fails)
            rights("-xdel")
            gate[0].set()
            await until(lambda: worker.health.refused)
            for _ in range(100):
                rights()
                for _ in range(4):
                    rights("-xdel")
                    await anyio.sleep(0.001)
            rights()
            await until(lambda: pending(real_server) == 0 and not worker._consumer.settler.set_aside, 20)
            letters = dead(real_server)
            await until(lambda: len(alarms) == len(letters))
        for letter in letters:
            assert_full(letter)
            assert letter["reason"] == ("retries_exhausted" if fails else "refused")
            assert fails or "xdel" in letter["refused"]
        assert len(letters) == MANY or not fails
        assert real_server.command("EXISTS", *(f"queue:dedup:k{number}" for number in range(MANY))) == 0
        assert real_server.command("EXISTS", *(f"queue:result:p{number}" for number in range(MANY))) == MANY
        tenants.clear()
        assert len(await DeadLetterQueue(broker=operator).replay(limit=100)) == len(letters)
        await burst(operator, pay, after, alarm)
    assert tenants == ["acme"] * len(letters)
    assert len(nexts) == (0 if fails else MANY)


@pytest.fixture
def tried(monkeypatch):
    """The fields and the side effects of each dead letter that the worker tries to write."""
    letters: list[tuple[dict[str, str], list[str]]] = []
    build = SettleCommands.dead_letter

    def noting(self, consumer, delivery, fields, also=(), **options):
        texts = [part.decode() if isinstance(part, bytes) else part for part in fields]
        letters.append((dict(zip(texts[::2], texts[1::2], strict=True)), [one.effect for one in also]))
        return build(self, consumer, delivery, fields, also, **options)

    monkeypatch.setattr(SettleCommands, "dead_letter", noting)
    return letters


@pytest.mark.parametrize("minus", ["-xdel", "-xack", "-xadd", "-evalsha", "~queue:dead"])
@pytest.mark.parametrize("fails", [False, True], ids=["acknowledgement", "dead letter"])
async def test_no_lesser_letter_is_tried_that_cannot_help(real_server, rights, tried, minus, fails):
    """No consequence has to do with what is refused, so none is left out. It is left, and handed back at the end."""
    refused = fails or minus not in ("-xadd", "~queue:dead")
    async with RedisBroker(rights()) as broker:
        async with working(broker, pay, after, alarm) as worker:
            await send(real_server, 1, fails=fails)
            rights(minus)
            gate[0].set()
            if refused or minus == "-xadd":
                await until(lambda: any("left pending" in line for line in worker.health.refused))
            else:
                await until(lambda: pending(real_server) == 0)
        if refused:
            assert tried
        for fields, also in tried:
            assert_full(fields)
            assert {"keep_result", "free_key"} <= set(also)
        if minus not in ("-xadd", "~queue:dead"):
            assert all("delay_task" in also or "send_task" in also for _, also in tried)
        assert dead(real_server) == []


async def test_two_consequences_that_are_refused_are_left_out(real_server, rights):
    """The letter is written without them, and has the message; the deduplication key is freed later."""
    async with RedisBroker(rights()) as broker, working(broker, pay, after, alarm) as worker:
        await send(real_server, 1)
        rights("~queue:result:*", "~queue:dedup:*")
        gate[0].set()
        await until(lambda: dead(real_server))
        rights()
        await until(lambda: worker.health.refused == ())
    (letter,) = dead(real_server)
    assert_full(letter)
    assert real_server.command("EXISTS", "queue:dedup:k0", "queue:result:p0") == 0


async def test_a_stream_of_another_type_leaves_the_message_whole(real_server, rights, tried):
    """Lesser letters are tried, since the server does not name the key; each has the message."""
    async with RedisBroker(rights()) as broker, working(broker, pay, after, alarm) as worker:
        await send(real_server, 1, fails=True)
        real_server.command("SET", "queue:dead", "of somebody else")
        gate[0].set()
        await until(lambda: any("left pending" in line for line in worker.health.refused))
        real_server.command("DEL", "queue:dead")
        await until(lambda: pending(real_server) == 0)
    for fields, _ in tried:
        assert_full(fields)
        assert fields["traceback"]


async def test_a_full_server_loses_nothing(real_server, tried):
    """Settling works without memory, or waits for it: no lesser letter is tried."""
    async with RedisBroker(real_server.url) as broker, working(broker, pay, after, alarm) as worker:
        await send(real_server, 1, fails=True)
        real_server.command("CONFIG", "SET", "maxmemory", "1")
        gate[0].set()
        await until(lambda: pending(real_server) == 0 or worker.health.refused)
        real_server.command("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: pending(real_server) == 0)
    for fields, also in tried:
        assert_full(fields)
        assert {"keep_result", "free_key"} <= set(also)


async def test_what_cannot_be_written_otherwise_is_kept_byte_for_byte(real_server, monkeypatch):
    """The last letter, of which nothing is decoded, has all fields as well, and says why; a replay goes on."""

    def broken(*_args, **_options):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(dead_lettering, "dead_letter_fields", broken)
    async with RedisBroker(real_server.url) as broker:
        async with working(broker, pay, after, alarm):
            await send(real_server, 1, fails=True)
            gate[0].set()
            await until(lambda: dead(real_server))
        (letter,) = dead(real_server)
        assert_full(letter)
        assert (letter["reason"], letter["error_type"]) == ("internal_error", "TypeError")
        assert "a mistake of ours" in letter["refused"]
        assert (letter["attempts"], letter["starts"]) == ("1", "1")
        monkeypatch.undo()
        real_server.command("DEL", "queue:dedup:k0")
        (entry,) = await DeadLetterQueue(broker=broker).peek()
        assert entry.replayable
        tenants.clear()
        await DeadLetterQueue(broker=broker).replay(task_id="p0")
        await burst(broker, pay, after, alarm)
    assert tenants == ["acme"]


async def test_what_is_no_message_stays_none(real_server, monkeypatch):
    """Of an entry that cannot be decoded, the last letter has the evidence: nothing in it looks like a task."""
    monkeypatch.setattr(dead_lettering, "dead_letter_fields", lambda *_a, **_o: 1 / 0)
    async with RedisBroker(real_server.url) as broker, working(broker, pay):
        real_server.command("XADD", "queue:standard", "*", "task", "pay", "priority", "high")
        real_server.command("XADD", "queue:standard", "*", "task", "pay", "args", "no json")
        await until(lambda: len(dead(real_server)) == 2)
        for entry in await DeadLetterQueue(broker=broker).peek():
            assert not entry.replayable


class TestSaidDead:
    """The log says that a task is dead when the server has its dead letter, once for each."""

    async def test_only_when_it_is_written(self, real_server, rights, caplog):
        def said() -> list[str]:
            return [line for line in caplog.messages if " is dead (" in line]

        async with RedisBroker(rights()) as broker:
            async with working(broker, pay, after, alarm) as worker:
                await send(real_server, 1, fails=True)
                rights("-xadd")
                gate[0].set()
                await until(lambda: any("left pending" in line for line in worker.health.refused))
                assert said() == []
            assert said() == dead(real_server) == []
            rights()
            async with working(broker, pay, after, alarm):
                await until(lambda: dead(real_server))
        (line,) = said()
        assert line == "task pay p0 is dead (retries_exhausted): OSError: no bank"

    async def test_of_a_refused_one_as_well(self, real_server, rights, caplog):
        async with RedisBroker(rights()) as broker, working(broker, pay, after, alarm):
            await send(real_server, 1)
            rights("~queue:result:*")
            gate[0].set()
            await until(lambda: dead(real_server))
            await until(lambda: any(" is dead (" in line for line in caplog.messages))
        (line,) = [line for line in caplog.messages if " is dead (" in line]
        assert line.startswith(
            "task pay p0 is dead (refused): SettlementRefused: the run succeeded; the acknowledgement"
        )
        assert "queue:result:" in line
        assert "streamq doctor" not in line


async def test_a_second_key_and_a_second_time_are_named(real_server, rights, caplog):
    """Each with its end: what the health names, the log has named."""
    async with RedisBroker(rights()) as broker, working(broker, pay, after, alarm) as worker:
        for turn, key in enumerate(("result", "dedup", "dedup")):
            gate[:] = [anyio.Event()]
            tenants.clear()
            caplog.clear()
            await send(real_server, 1)
            rights(f"~queue:{key}:*")
            gate[0].set()
            line = await until(lambda: next(iter(worker.health.refused), None))
            await until(lambda: any("tried apart" in line for line in caplog.messages), 2)
            rights()
            await until(lambda: worker.health.refused == () and pending(real_server) == 0)
            real_server.command("DEL", "queue:dead")
            (first,) = [line for line in caplog.messages if "tried apart" in line]
            assert f"queue:{key}:" in first, (turn, line)
            over = [line for line in caplog.messages if " is settled as " in line]
            assert over
            assert f"queue:{key}:" in over[0]


async def test_a_missing_right_fills_no_log(real_server, rights, caplog):
    """Hundreds of refused acknowledgements have a line each for refused, left and over; the rest is at level debug."""
    async with RedisBroker(rights()) as broker, working(broker, pay, after, alarm, concurrency=200) as worker:
        await send(real_server, 200)
        rights("-xack")
        gate[0].set()
        await until(lambda: sum("left pending" in line for line in worker.health.refused) == 10, 20)
        await anyio.sleep(0.5)
        rights()
        await until(lambda: pending(real_server) == 0, 20)
    texts = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    lines = [text for text in texts if "the acknowledgement of" in text and " is dead (" not in text]
    assert any("and 199 more like it have ended" in line for line in lines)
    assert len(lines) <= 5, lines
