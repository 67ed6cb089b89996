"""Dead letters as lines of JSON, and back; and what hides arguments."""

from __future__ import annotations

import orjson
import pytest

from streamq import RedisBroker
from streamq.dead_letter import DeadLetterFilter, DeadLetterQueue, Redaction
from streamq.dead_letter.lines import line_of, read_line
from streamq.errors import BrokerError, ConfigurationError
from tests.dead_letter.letters import bury, bury_many, dead_ids

pytestmark = pytest.mark.paired("memory")

DIED = (b"died_at", b"2026-01-01T00:00:00.000+00:00")
HOSTILE = {
    "plain": (b"task_id", b"t", b"task", b"send", b"args", b'["<script>alert(1)</script>", 9223372036854775808]'),
    "bytes": (b"task", b"\xff\xfe\x00", b"\xfe", b"x", b"raw.args", bytes(range(256))),
    "twice": (b"task", b"a", b"task", b"b"),
    "escape": (b"error", b"\x1b[2J\x7f\x9b\r\n", b"x\x1b", b"\xc2\x9b31m"),
    "bidi": (b"error", "\u202e\u2066\u2028\ufeff".encode()),
    "base64": (b"args", b'{"base64": "eA=="}', b"base64", b"x"),
    "empty": (b"", b"", b"task", b""),
    "astral": (b"error", "\U000e0001\U0001f600".encode()),
}


async def exported(queue: DeadLetterQueue, **given: object) -> list[bytes]:
    return [line async for line in queue.export(**given)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", HOSTILE)
async def test_nothing_is_lost_on_the_way(server, kind):
    """Each field is byte for byte what it was, in its place; the line drives no terminal."""
    flat = [*HOSTILE[kind], *DIED]
    server.command("XADD", "queue:dead", "*", *flat)
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        (line,) = await exported(queue)
        assert line.decode().isprintable()
        assert orjson.loads(line)["id"] == server.command("XRANGE", "queue:dead", "-", "+")[0][0].decode()
        server.command("DEL", "queue:dead")
        (one,) = [one async for one in queue.import_lines([line + b"\n", b"\n"])]
    ((entry, found),) = server.command("XRANGE", "queue:dead", "-", "+")
    assert found == flat
    assert (one.line, one.entry_id, one.error) == (1, entry.decode(), None)


@pytest.mark.slow
async def test_thirty_megabytes(real_server):
    args = b'["' + b"x" * 30_000_000 + b'"]'
    bury(real_server, "large", args=args)
    async with RedisBroker(real_server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        lines = await exported(queue)
        (one,) = [one async for one in queue.import_lines(lines)]
    ((_, flat),) = real_server.command("XRANGE", "queue:dead", one.entry_id, one.entry_id)
    assert dict(zip(flat[::2], flat[1::2], strict=True))[b"args"] == args


async def test_many_in_their_order_and_what_comes_meanwhile_is_not_exported(server):
    """Only those that match; with the time at which a letter died that has no such field."""
    bury_many(server, 230)
    bury(server, "other", task="mail")
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        lines = []
        async for line in queue.export(DeadLetterFilter(task_name="send")):
            if not lines:
                bury(server, "newer")
            lines.append(line)
        died = [letter.died_at for letter in await queue.peek(1, oldest_first=True)]
        server.command("DEL", "queue:dead")
        found = [one async for one in queue.import_lines(lines)]
        assert [letter.died_at for letter in await queue.peek(1, oldest_first=True)] == died
    assert [one.line for one in found] == list(range(1, 231))
    assert dead_ids(server) == [f"t{number}" for number in range(230)]


async def test_an_imported_letter_is_replayed_as_before(server):
    bury(server, "a", headers='{"trace": "1"}', retries="2")
    async with RedisBroker(server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        lines = await exported(queue)
        await queue.purge()
        assert len([one async for one in queue.import_lines(lines)]) == 1
        assert len(await queue.replay(limit=5)) == 1
    assert server.command("XLEN", "queue:standard") == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "is no JSON"), (b"\xff", "is no JSON"), ("[1]", "has no fields"), ('{"fields": {}}', "has no fields"),
        ('{"fields": {"a": 1}}', "'1' is neither a text nor"), ('{"fields": [["a"]]}', "no pair"),
        ('{"fields": ["ab"]}', "no pair"), ('{"fields": {"a": {"base64": "?"}}}', "is no base64"),
        ('{"fields": {"a": {"base64": "eA==", "b": "c"}}}', "is neither a text nor"),
        ('{"fields": {"a": "b"}, "redacted": true}', "was redacted"),
        (orjson.dumps({"fields": {str(n): "" for n in range(4001)}}), "has 4,001 fields"),
    ],
)  # fmt: skip
async def test_a_line_that_is_none_is_passed_over_and_named(server, line, named):
    """By its number. The others are added."""
    good = b'{"fields": {"task_id": "good", "task": "send"}}'
    async with RedisBroker(server.url) as broker:
        found = [one async for one in DeadLetterQueue(broker=broker).import_lines([good, line, good])]
    wrong = [one for one in found if one.error is not None]
    assert [one.line for one in wrong] == [2]
    assert str(wrong[0].error).startswith("line 2: ")
    assert named in str(wrong[0].error)
    assert dead_ids(server) == ["good", "good"]


async def test_a_server_that_takes_nothing_is_said(real_server):
    async with RedisBroker(real_server.url) as broker:
        queue = DeadLetterQueue(broker=broker)
        real_server.command("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(BrokerError) as refused:
                _ = [one async for one in queue.import_lines(['{"fields": {"task": "send"}}'])]
        finally:
            real_server.command("CONFIG", "SET", "maxmemory", 0)
    assert refused.value.code == "OOM"


class TestRedaction:
    def hidden(self, *names: str, **fields: object) -> dict[str, str]:
        flat = [str(part).encode() if not isinstance(part, bytes) else part for pair in fields.items() for part in pair]
        found = Redaction(names).flat(flat)
        assert found[::2] == flat[::2]
        return {
            name.decode(): value.decode(errors="replace") for name, value in zip(found[::2], found[1::2], strict=True)
        }

    def test_names_at_every_depth(self):
        """In any case, with stars; other values are as they were."""
        found = self.hidden(
            "password", "*Token*",
            args='[1,{"PassWord":"abc","a":[{"api_token_2":7}]}]', kwargs='{"password":{"a":1},"n":2}',
            headers='{"x-token":"t","trace":"1"}',
        )  # fmt: skip
        assert orjson.loads(found["args"]) == [1, {"PassWord": "[redacted]", "a": [{"api_token_2": "[redacted]"}]}]
        assert orjson.loads(found["kwargs"]) == {"password": "[redacted]", "n": 2}
        assert orjson.loads(found["headers"]) == {"x-token": "[redacted]", "trace": "1"}

    def test_positional_arguments_have_their_places_as_names(self):
        assert self.hidden("1", args='["a","b","c"]')["args"] == '["a","[redacted]","c"]'
        found = self.hidden("*", args='["a",2]', kwargs='{"b":[1]}')
        assert (found["args"], found["kwargs"]) == ('["[redacted]","[redacted]"]', '{"b":"[redacted]"}')

    def test_hidden_texts_are_hidden_in_errors_too(self):
        """Where Python has written them with escapes as well; short ones are everywhere."""
        found = self.hidden(
            "p", "q", kwargs='{"p":"hun\\nter2","q":"ab"}', error="bad 'hun\\nter2' ab", traceback="x hun\nter2 y"
        )
        assert (found["error"], found["traceback"]) == ("bad '[redacted]' ab", "x [redacted] y")

    def test_what_cannot_be_looked_into_is_hidden_whole(self):
        found = self.hidden("p", args=b"[\xff", kwargs="[" * 5000, then="[]", **{"raw.x": b"\xff", "task": "send"})
        assert found["args"] == found["kwargs"] == '"[redacted]"'
        assert found["then"] == found["raw.x"] == "[redacted]"
        assert found["task"] == "send"

    def test_redacted_lines_say_so(self):
        line = line_of("1-0", [b"kwargs", b'{"p":1}'], Redaction(["p"]))
        assert orjson.loads(line) == {"id": "1-0", "fields": {"kwargs": '{"p":"[redacted]"}'}, "redacted": True}
        assert read_line(line.replace(b"true", b"false"))

    @pytest.mark.parametrize("names", [[], "abc", [1], [""], None])
    def test_what_is_no_policy(self, names):
        with pytest.raises(ConfigurationError):
            Redaction(names)
