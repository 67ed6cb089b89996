"""Search and figures of dead letters: what is found, how far was looked, and where to go on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from streamq import RedisBroker
from streamq.dead_letter import DeadLetterFilter, DeadLetterQueue, DeadLetterStats
from streamq.errors import ConfigurationError
from tests.dead_letter.letters import bury, bury_many

pytestmark = pytest.mark.paired("memory")

HOSTILE = {
    "script": {"args": '["<script>alert(1)</script>"]', "error": "<img src=x onerror=alert(1)>"},
    "escape": {"args": '["\\u001b[2J"]', "error": "\x1b]0;PWNED\x07"},
    "bidi": {"args": '["\u202eevil\u2066"]', "error": "\u202e\u2028"},
    "bytes": {"args": b"[\xff\xfe", "error": b"\xff", "task": b"\xfe"},
    "deep": {"args": "[" * 2000 + "]" * 2000},
    "number": {"args": "[9223372036854775808, 1e400]", "kwargs": '{"n": 123456789012345678901234567890}'},
}


async def found(queue: DeadLetterQueue, **given: object) -> list[str]:
    result = await queue.search(DeadLetterFilter(**given), oldest_first=True)  # type: ignore[arg-type]
    assert result.after is None
    return [letter.task_id for letter in result.letters]


async def test_each_part_of_a_filter(server):
    bury(server, "plain")
    bury(server, "mail", task="mail", error_type="app.errors.Odd", reason="expired", tier="bulk")
    bury(server, "text", error="Connection REFUSED by 10.0.0.7")
    bury(server, "argument", kwargs='{"customer": "c-17", "n": 2, "flag": true}', args='[{"a": [1, "\\u00fcber"]}]')
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        assert await found(queue) == ["plain", "mail", "text", "argument"]
        assert await found(queue, task_name="mail") == ["mail"]
        assert await found(queue, error_type="Odd") == await found(queue, error_type="app.errors.Odd") == ["mail"]
        assert await found(queue, reason="expired") == await found(queue, tier="bulk") == ["mail"]
        assert await found(queue, text="connection refused") == ["text"]
        assert await found(queue, text="C-17") == await found(queue, text='"a":') == ["argument"]
        assert await found(queue, text="ÜBER") == ["argument"]  # JSON has it as an escape
        assert await found(queue, text="valueerror") == ["plain", "text", "argument"]
        assert await found(queue, arguments={"customer": "c-17"}) == ["argument"]
        assert await found(queue, arguments={"n": 2}) == await found(queue, arguments={"n": 2.0}) == ["argument"]
        assert await found(queue, arguments={"n": True}) == await found(queue, arguments={"n": "2"}) == []
        assert await found(queue, arguments={"flag": True}) == ["argument"]
        assert await found(queue, arguments={"flag": 1}) == []
        assert await found(queue, arguments={"0": {"a": [1, "über"]}}) == ["argument"]
        assert await found(queue, arguments={"0": "a@b.c", "n": 1}) == ["plain", "mail", "text"]
        assert await found(queue, arguments={"1": "a@b.c"}) == []
        assert await found(queue, task_name="send", text="c-17", reason="expired") == []


async def test_age_counts_from_the_arrival(server):
    """By the server's clock. Nothing outside of that age is looked at."""
    server.command("XADD", "queue:dead", "1000-1", "task_id", "old", "task", "send")
    bury(server, "new")
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        assert await found(queue, older_than=3600) == ["old"]
        assert await found(queue, newer_than=timedelta(hours=1)) == ["new"]
        assert await found(queue, older_than=3600, newer_than=7200) == []
        for oldest_first in (False, True):
            result = await queue.search(DeadLetterFilter(newer_than=3600), oldest_first=oldest_first)
            assert ([one.task_id for one in result.letters], result.examined, result.after) == (["new"], 1, None)
            result = await queue.search(DeadLetterFilter(older_than=3600), oldest_first=oldest_first)
            assert ([one.task_id for one in result.letters], result.examined, result.after) == (["old"], 1, None)


@pytest.mark.parametrize("oldest_first", [False, True])
async def test_a_search_says_how_far_it_has_looked_and_goes_on_there(server, oldest_first):
    """Each letter is looked at once, whatever the pieces are: those that are found, and those looked at."""
    bury_many(server, 350)
    some = DeadLetterFilter(text="[1")  # 1, 10 to 19, 100 to 199
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        seen, examined, after = [], 0, None
        while True:
            result = await queue.search(some, count=7, after=after, examine=60, oldest_first=oldest_first)
            assert result.examined <= 60
            assert len(result.letters) <= 7
            seen += [int(letter.task_id[1:]) for letter in result.letters]
            examined += result.examined
            if (after := result.after) is None:
                break
        wanted = [number for number in range(350) if str(number).startswith("1")]
        assert seen == (wanted if oldest_first else wanted[::-1])
        assert examined == 350


async def test_figures_by_error(server):
    """In pieces, as in one; the largest group first, with its first and last time and its newest letter."""
    for number in range(25):
        bury(server, f"a{number}", died_at=f"2026-01-01T00:00:{number:02}.000+00:00")
    last = bury(server, "a", died_at="2026-01-02T00:00:00.000+00:00")
    bury(server, "b", task="mail")
    bury(server, "c", reason="expired")
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        whole = await queue.stats()
        pieces = DeadLetterStats()
        while True:
            pieces = await queue.stats(before=pieces, examine=10)
            if pieces.after is None:
                break
        assert pieces == whole
        assert (whole.examined, whole.matched, whole.other, len(whole.groups)) == (28, 28, 0, 3)
        first = whole.groups[0]
        assert (first.task_name, first.error_type, first.reason, first.count) == (
            "send", "builtins.ValueError", "rejected", 26
        )  # fmt: skip
        assert (f"{first.first:%d %H:%M:%S}", f"{first.last:%d %H:%M:%S}") == ("01 00:00:00", "02 00:00:00")
        assert first.example == last
        few = await queue.stats(DeadLetterFilter(task_name="mail"))
        assert (few.examined, few.matched, few.groups[0].count) == (28, 1, 1)


async def test_the_groups_are_bounded(server, monkeypatch):
    """Of letters that are each of another kind, the first are counted apart and the others together."""
    monkeypatch.setattr("streamq.dead_letter.searching.MOST_GROUPS", 3)
    for number in range(8):
        bury(server, f"t{number}", error_type=f"E{number}")
    bury(server, "again", error_type="E0")
    async with RedisBroker(server.url) as broker:
        found = await DeadLetterQueue(broker=broker).stats()
    assert (len(found.groups), found.other, found.matched) == (3, 5, 9)


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_letters_are_looked_through(server, kind):
    """P13: whatever a letter holds, it stops no search and no count."""
    bury(server, "before")
    entry = bury(server, "odd", **HOSTILE[kind])
    bury(server, "after")
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        assert await found(queue, text="no such text", arguments={"0": 1}) == []
        assert len(await found(queue)) == 3
        assert (await queue.stats()).matched == 3
        texts = {"script": "onerror", "escape": "]0;pwned", "bidi": "\u202eevil", "bytes": "\\xff", "number": "1e400"}
        if kind in texts:
            assert [one.entry_id for one in (await queue.search(DeadLetterFilter(text=texts[kind]))).letters] == [entry]


@pytest.mark.slow
async def test_large_letters_are_read_few_at_a_time(real_server, monkeypatch):
    """30 MB each: a page has one of them, and a search ends with what it has looked at after two or three."""
    monkeypatch.setattr("streamq.dead_letter.pages.FIRST", 1)
    for number in range(5):
        bury(real_server, f"t{number}", args='["' + "x" * 30_000_000 + 'END"]')
    async with RedisBroker(real_server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        seen, after, calls = 0, None, 0
        while True:
            result = await queue.search(DeadLetterFilter(text="xend"), after=after, count=100)
            seen, after, calls = seen + len(result.letters), result.after, calls + 1
            if after is None:
                break
    assert seen == 5
    assert calls == 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"reason": "bored"}, "reason='bored' is not known: give one of"),
        ({"text": ""}, "text='' is in every dead letter"),
        ({"task_name": 7}, "task_name is of type int"),
        ({"older_than": -1}, "older_than=-1 cannot be used"),
        ({"newer_than": float("nan")}, "newer_than=nan cannot be used"),
        ({"arguments": ["a"]}, "arguments is of type list"),
        ({"arguments": {"a": object()}}, "arguments\\['a'\\] has no JSON"),
        ({"arguments": {"a": float("inf")}}, "arguments\\['a'\\] has no JSON"),
        ({"text": "\ud800"}, "has no UTF-8"),
        ({"text": "x" * 20_000}, "is too long"),
    ],
)
def test_what_is_no_filter(given, named):
    """It is refused with the value named."""
    with pytest.raises(ConfigurationError, match=named):
        DeadLetterFilter(**given)


async def test_bad_bounds_are_refused(server):
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        for given in ({"count": 0}, {"examine": 0}, {"after": "yesterday"}):
            with pytest.raises(ConfigurationError):
                await queue.search(**given)
