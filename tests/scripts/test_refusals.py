"""P14: a step that the server refuses has changed nothing, whatever was refused.

Scripts are not rolled back: what one did before it was refused stays done. So each must know that before it changes
anything. Here every step is run again and again, each time with another of its keys under something of somebody else's,
without the right to one of its commands, keys and channels, with a stream whose ids are used up, on a server that is
full or read-only. What the server holds is compared byte for byte.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from streamq.scripts import step, with_counters
from streamq.wire.counters import pack_one
from tests.servers import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import RealServer

pytestmark = [pytest.mark.paired("memory"), pytest.mark.slow]

STREAM, CRASHES, DELAYED, MESSAGES, DEAD, TOTALS = "s", "s:crashes", "s:delayed", "s:messages", "dead", "totals"
OTHER = ("o", "o:delayed", "o:messages")  # those of another tier
TIER = (STREAM, DELAYED, MESSAGES)
FIELDS = ("task", "t")

# What follows from an end: its keys, and its arguments.
FREE = (("d", "latest", DELAYED, "o:delayed"), ("free_key", 4, 2, "x", "wake"))
BEGIN = (("w",), ("begin_workflow", 1, 3, "[]", 3, 9000))
NOTE = (("w",), ("note_step", 1, 5, 1, "g", "done", 900_000, 9000))
SEND = (("next",), ("send_task", 1, 4, *FIELDS, "workflow", "w.2"))
LATER = (("n:delayed", "n:messages"), ("delay_task", 2, 4, "y", 1000, "wake", '["task","t","workflow","w.3"]'))
JOIN = (
    ("join", "last", "l:delayed", "l:messages"),
    ("join_group", 4, 10, 1, "1", 1, 9000, "z", 0, "wake", "", *FIELDS),
)
JOIN_LATER = (JOIN[0], ("join_group", 4, 10, 1, "1", 1, 9000, "z", 5000, "wake", "", *FIELDS))
TELL = (("r",), ("keep_result", 1, 2, 5000, "done"))


def following(*means: tuple[tuple[str, ...], tuple[Any, ...]]) -> tuple[list[str], list[Any]]:
    return [key for keys, _ in means for key in keys], [part for _, parts in means for part in parts]


@dataclass(frozen=True)
class Case:
    """A step, its keys, and what it is called with; `entry` stands for the id of an entry that `me` holds."""

    step: str
    keys: tuple[str, ...]
    arguments: tuple[Any, ...]
    queued: bool = False  # is `x` in the stream in place of among the delayed?
    older: bool = False  # as before Redis 7, where a script cannot ask what it may do
    name: str = ""

    def run(self, server: RealServer, entry: bytes, user: str = "default") -> Any:
        last = server.command("XREVRANGE", STREAM, "+", "-", "COUNT", 1) if self.queued else ()
        stand_ins = {"entry": entry, "queued": last[0][0] if isinstance(last, list) and last else b""}
        arguments = [stand_ins.get(part, part) if isinstance(part, str) else part for part in self.arguments]
        source = step(self.step).source
        if self.older:
            source = source.replace("redis.acl_check_cmd", "redis.unknown")
        if self.counts:
            command = with_counters(step(self.step)(self.keys[:-1], *arguments), self.keys[-1], 60, COUNTS)
        else:
            command = step(self.step)(self.keys, *arguments)
        return as_user(server, user, "EVAL", source, *command[2:])

    @property
    def counts(self) -> bool:
        """Has it the counters of a settlement, and their key as its last?"""
        return self.keys[-1] == STATS


def as_user(server: RealServer, user: str, *command: Any) -> Any:
    """Send a command in the name of a user; an error comes back as the reply."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(server.socket)
        reader, replies = hiredis.Reader(), []
        connection.sendall((pack("AUTH", user, "x") if user != "default" else pack("PING")) + pack(*command))
        while len(replies) < 2:
            while (reply := reader.gets()) is not False:
                replies.append(reply)
            if len(replies) < 2:
                reader.feed(connection.recv(65536))
        assert not isinstance(replies[0], Exception)
        return replies[1]


def limited(server: RealServer, *rules: str) -> None:
    """Make the user `limited`, who may do everything but what the rules say."""
    server.command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "+@all", *rules)


NAMES, PARTS = following(NOTE, TELL, FREE, SEND, LATER, JOIN)
NAMES_LATER, PARTS_LATER = following(SEND, JOIN_LATER)
NAMES_FIRST, PARTS_FIRST = following(BEGIN, SEND, LATER, JOIN)
OLD = ("old r", "old p")  # what an earlier task of the same id has left
NEWEST = ("d", "latest", "accepted", *TIER, *OTHER)
ALIVE, LEASES = "s:alive", "s:leases"
STATS, COUNTS = "stats", pack_one("low|t|", ("done",), superseded=True)
LIMIT = ("permits", "called", "line", "limits", DELAYED)
FAR = 10**15
SCHEDULE = '{"name":"n","cron":"* * * * *","tz":"UTC","fields":["task","t"],"revision":"1"}'
CASES = {
    "ack": Case("ack", (STREAM, CRASHES), ("g", 0, 1, "entry")),
    "ack, per entry": Case("ack", (STREAM, CRASHES), ("g", 1, 1, "entry")),
    "ack_results": Case("ack_results", (STREAM, CRASHES, "r"), ("g", 2, 5000, 1, "entry", "1")),
    "ack_side_effects": Case("ack_side_effects", (STREAM, CRASHES, *NAMES), ("g", "entry", *PARTS)),
    "finish, later": Case("ack_side_effects", (STREAM, CRASHES, *NAMES_LATER), ("g", "entry", *PARTS_LATER)),
    "skip": Case("skip", (STREAM, CRASHES), ("g", "me", "entry", "g")),
    "dead_letter": Case(
        "dead_letter",
        (STREAM, CRASHES, DEAD, TOTALS, *NAMES),
        ("g", "me", "entry", 100, 1000, 1, 60, 1, 2, *FIELDS, *PARTS),
    ),
    "postpone": Case(
        "postpone", (STREAM, CRASHES, DELAYED, MESSAGES), ("g", "me", "entry", 10, "m", '["task","t"]', "wake")
    ),
    "cancel": Case("cancel", (*TIER, CRASHES, *NAMES), ("", "wake", 9000, 1, "x", *PARTS)),
    "cancel, queued": Case("cancel", (*TIER, CRASHES, *NAMES), ("queued", "wake", 9000, 1, "y", *PARTS), queued=True),
    "cancel, running": Case("cancel", (*TIER, CRASHES), ("entry", "wake", 9000, 1, "y")),
    "task_started": Case("task_started", FREE[0], FREE[1]),
    "start_workflow": Case("start_workflow", ("guard", *NAMES_FIRST), ("w", 1, 9000, 2, *OLD, *PARTS_FIRST)),
    "stop_workflow": Case("stop_workflow", ("w", "r", "r2"), ("g", "stopped", 9000, 1, "old r", 5000, 0, 7000)),
    "enqueue": Case("enqueue", (*TIER, "g1", "g2"), ("n", 0, -1, "wake", "", *OLD, 9000, 9000, *FIELDS)),
    "enqueue, later": Case("enqueue", (*TIER, "g1"), ("n", 5000, 0, "wake", '["task","t"]', "", "", 9000, *FIELDS)),
    "debounce": Case("debounce", NEWEST, ("n", 1, 0, -1, 9000, -1, 9000, "wake", '"task","t"]', *OLD, *FIELDS)),
    "debounce, later": Case(
        "debounce", NEWEST, ("n", 2, 5000, 0, 9000, -1, 9000, "wake", '"task","t"]', *OLD, *FIELDS)
    ),
    "keep_last": Case("keep_last", NEWEST, ("n", 2, 0, -1, 9000, 0, 9000, "wake", '"task","t"]', *OLD, *FIELDS)),
    "keep_last, queued": Case(
        "keep_last", NEWEST, ("n", 2, 0, -1, 9000, FAR, 9000, "wake", '"task","t"]', *OLD, *FIELDS), queued=True
    ),
    "keep_last, running": Case(
        "keep_last", NEWEST, ("n", 1, 0, -1, 9000, 9000, 9000, "wake", '"task","t"]', *OLD, *FIELDS), queued=True
    ),
    "promote": Case("promote", TIER, (100,)),
    "replay": Case("replay", (DEAD, STREAM), ("7-0", "n", "x", 0, "theirs", "", 1, "old r", *FIELDS)),
    "replay, a step": Case("replay", (DEAD, STREAM, "w"), ("7-0", "n", "x", 0, "theirs", "1:g", 1, "old r", *FIELDS)),
    "replay, with its key": Case("replay", (DEAD, STREAM, "g1", "latest"), ("7-0", "n", "x", 9000, "", "", 0, *FIELDS)),
    "replay, the key is its own": Case(
        "replay", (DEAD, STREAM, "d", "latest"), ("7-0", "n", "x", 9000, "", "", 0, *FIELDS)
    ),
    "operation_replay": Case(
        "operation_replay",
        ("op", DEAD, STREAM),
        ("0-0", 1, 9000, "", "7-0", "n", "x", 0, "theirs", "", 1, "old r", *FIELDS),
    ),
    "operation_replay, with its key": Case(
        "operation_replay",
        ("op", DEAD, STREAM, "d", "latest", "w"),
        ("0-0", 1, 9000, "", "7-0", "n", "x", 9000, "", "1:g", 0, *FIELDS),
    ),
    "operation_advance": Case("operation_advance", ("op", DEAD), ("0-0", "7-0", 1, 0, 9000, "", "7-0")),
    "operation_advance, passed over": Case("operation_advance", ("op", DEAD), ("0-0", "7-0", 1, 1, 9000, "odd")),
    "operation_begin": Case(
        "operation_begin", ("newop", "operations", DEAD), ("new", 9000, 2, "state", "running", "at", "0-0")
    ),
    "operation_state": Case("operation_state", ("op", DEAD), ("running", "stopped", 9000, "")),
    "release": Case("release", (STREAM,), ("g", "me", "parked", 30_000, "wake", "entry")),
    "reclaim": Case(
        "reclaim", (STREAM, ALIVE, LEASES, CRASHES), ("g", "you", "parked", 0, 1, "0-0", 10, 9000, 3, 2, FAR)
    ),
    "renew": Case("renew", (STREAM, ALIVE, LEASES, CRASHES), ("g", "me", 9000, 1, 1, "entry")),
    "remove_consumers": Case("remove_consumers", (STREAM, ALIVE, LEASES), ("g", "parked", 10, "", 1)),
    "mark_isolated": Case("mark_isolated", (STREAM, CRASHES), ("g", "me", "entry", 9000)),
    "count_dropped": Case("count_dropped", (TOTALS,), (3, 60)),
    "add_counters": Case("add_counters", ("window",), (60, "a", 1, "b", 2)),
    "progress": Case("progress", ("p1", "p2"), (9000, "1", 9000, "2")),
    "register": Case("register", ("schedules", "ticks"), ("m", SCHEDULE, 5, "wake")),
    "unregister": Case("unregister", ("schedules", "ticks", "ticked"), ("n", "wake")),
    "tick": Case(
        "tick",
        ("schedules", "ticks", "ticked", "next", "guard"),
        ("n", "1", 1, 9, 5, 9000, "t1", "", "", "", "t2", "", "", ""),
    ),
    "once_begin": Case("once_begin", ("once",), (9000, 9000)),
    "once_end": Case("once_end", ("begun",), ("1", 9000, "result")),
    "once_renew": Case("once_renew", ("begun",), ("1", 9000, 9000)),
    "once_withdraw": Case("once_withdraw", ("begun",), ("run", 9000)),
    "permit_acquire": Case("permit_acquire", LIMIT, ("n", 2, 9000, 2000, "wake", "run", f"9-9 0 {DELAYED} q", "")),
    "permit_acquire, full": Case(
        "permit_acquire", LIMIT, ("n", 1, 9000, 2000, "wake", "run", f"9-9 0 {DELAYED} q", "")
    ),
    "permit_check": Case("permit_check", LIMIT, ("n", "wake", f"6-6 0 {DELAYED} later", 5)),
    "permit_release": Case("permit_release", LIMIT, ("n", 1, 2000, "wake", "held")),
    "permit_renew": Case("permit_renew", LIMIT, ("n", 2, 9000, 2000, "wake", "held")),
    "permit_sweep": Case("permit_sweep", LIMIT, ("n", 2000, "wake")),
    "permit_wake": Case("permit_wake", (DELAYED,), ("wake", "later")),
    "rate_acquire": Case("rate_acquire", ("bucket",), (100, 1, 1, "", 0)),
    "rate_drain": Case("rate_drain", ("bucket",), (100, 1, 5000)),
    "rate_return": Case("rate_return", ("bucket",), (100,)),
    "circuit_enter": Case("circuit_enter", ("circuit", "circuits"), ("c", 1000, 1, 100, 9000, "", -1)),
    "circuit_leave": Case(
        "circuit_leave", ("circuit", "circuits"), ("c", 1, 0, 1000, 1, 9000, 10, 1, "", 0, 1, "E", "e", 100)
    ),
    "circuit_postpone": Case("circuit_postpone", ("circuit",), (100, 9000, -1, FAR, FAR)),
    "circuit_report": Case("circuit_report", ("circuit", "circuits"), ("c", 9000, 10, "state", "open")),
}
CASES |= {
    name: replace_fields(case, keys=(*case.keys, STATS))
    for name, case in CASES.items()
    if "counted(" in step(case.step).source
}
READING = {"find_entry"}  # changes nothing
FULL = "18446744073709551615-18446744073709551615"
# What these commands do is left undone where they may not run, and refuses nothing: words to other workers, what the
# monitor alone reads, evidence of crashes (it ends by its TTL) and of who is alive.
COUNTING = {case.step for case in CASES.values() if case.counts}
FOR_MONITOR = {"circuit_enter", "circuit_leave", "circuit_report"}
OPTIONAL: dict[str, set[str] | None] = {
    "publish": None,
    "zrange": None,  # tells whether others must be woken
    "xinfo|stream": None,  # tells that the ids of a stream are used up
    "xdel": {
        "cancel",
        "task_started",
        "promote",
        "operation_advance",
        "operation_begin",
        "operation_state",
    },  # opens the way on a server out of memory
    "exists": {"renew", "reclaim", "dead_letter", "postpone"},  # marks of cancelled entries
    "hget": {"dead_letter", "postpone"},
    "hmget": {"renew", "reclaim"},
    "memory|usage": None,  # without it, dead letters are bounded by their number
    # Counters are lesser than the work; so is the count of what was dropped.
    **{key: COUNTING | {"count_dropped"} for key in ("hincrby", "expire")},
    # What an earlier task of the same id has left, stays. (Two of them delete keys of their own, too.)
    "get": {"replay", "operation_replay"},
    "del": {"enqueue", "start_workflow", "stop_workflow", "replay", "operation_replay", "debounce", "keep_last"},
    "hdel": {"ack", "ack_results", "ack_side_effects", "dead_letter", "postpone", "skip"},
    **dict.fromkeys(
        ("zadd", "zrem", "zremrangebyscore", "zremrangebyrank", "pttl", "pexpire"), FOR_MONITOR | {"cancel"}
    ),
}
# What takes away more than it brings is carried out by a server out of memory, too.
SETTLES = {
    "ack", "ack_results", "ack_side_effects", "dead_letter", "postpone", "cancel", "task_started", "promote", "release",
    "skip", "reclaim", "renew", "remove_consumers", "mark_isolated", "once_end", "once_withdraw", "permit_acquire",
    "permit_check", "stop_workflow", "operation_advance", "operation_begin", "operation_state",
    "permit_release", "permit_renew", "permit_sweep", "rate_acquire", "rate_drain", "rate_return",
}  # fmt: skip
KEYLESS = {"publish", "time", "client|unblock"}
_NAMED = re.compile(r"may not run '([^']*)' on '([^']*)'")
# A renewal is not one change but many, each good by itself: what is refused keeps no other from being renewed.
PIECEMEAL = {"renew"}


def prepared(server: RealServer, case: Case) -> bytes:
    """What every step finds something to do with. Return the id of the entry that `me` holds.

    An entry that is held; `x` delayed under a deduplication key; dead letters; a dead consumer; a schedule that is due;
    a begun effect; a permit that is held, one waiter that is called and one in line; a bucket; a half-open circuit.
    """
    server.command("FLUSHALL")
    server.command("XGROUP", "CREATE", STREAM, "g", "0", "MKSTREAM")
    entry: bytes = server.command("XADD", STREAM, "*", *FIELDS)
    server.command("XREADGROUP", "GROUP", "g", "me", "STREAMS", STREAM, ">")
    server.command("HSET", CRASHES, entry, "once", "other", "evidence")
    server.command("XGROUP", "CREATECONSUMER", STREAM, "g", "gone")
    server.command("ZADD", ALIVE, 1, "gone", 1, "me")
    server.command("HSET", LEASES, "gone", 1, "me", 1)
    server.command("ZADD", DELAYED, 1, "x", FAR, "later")
    server.command("HSET", MESSAGES, "x", '["task","t"]', "later", '["task","t"]')
    server.command("SET", "d", "x")
    server.command("HSET", "latest", "id", "x", "since", 0, "entry", "", "due", 0, "ttl", 1, "next", "later")
    server.command("XADD", DEAD, "7-0", *FIELDS)
    server.command("HSET", "op", "state", "running", "at", "0-0", "done", 3)
    server.command("HSET", "schedules", "n", SCHEDULE)
    server.command("ZADD", "ticks", 1, "n")
    server.command("HSET", "ticked", "n", 1)
    server.command("HSET", "begun", "token", 1, "until", FAR, "run", "run")
    server.command("ZADD", "permits", FAR // 500, "held")
    server.command("ZADD", "called", 1, f"7-7 0 {DELAYED} gone")
    server.command("ZADD", "line", 1, f"8-8 0 {DELAYED} later")
    server.command("HSET", "bucket", "tail", 1, "gate", 1)
    server.command("PEXPIRE", "bucket", 900_000)
    server.command("MSET", "old r", "theirs", "old p", "theirs")
    server.command("HSET", "w", "plan", "[]", "total", 3, "1", "sent 1-0")
    server.command("PEXPIRE", "w", 100_000)
    server.command("HSET", "circuit", "state", "half_open", "period", 1, "since", 1)
    if case.queued:
        server.command("ZREM", DELAYED, "x")
        server.command("HDEL", MESSAGES, "x")
        queued = server.command("XADD", STREAM, "*", "id", "x", *FIELDS)
        server.command("HSET", "latest", "entry", queued, "stream", STREAM, "since", FAR)
        if "running" in case.name:
            server.command("HSET", "latest", "entry", entry)
    return entry


def contents(server: RealServer) -> dict[bytes, tuple[bytes, bool]]:
    """Return all keys, what they hold, and whether that ends by itself."""
    return {
        key: (server.command("DUMP", key), server.command("PEXPIRETIME", key) > 0)
        for key in server.command("KEYS", "*")
    }


def refused(server: RealServer, case: Case, deny: Callable[[], None], user: str = "default") -> str:
    """Run a step that meets `deny`. Assert that it did all of its work or none; return why it was refused, or ""."""
    entry = prepared(server, case)
    deny()
    before = contents(server)
    reply = case.run(server, entry, user)
    if isinstance(reply, Exception):
        if case.step not in PIECEMEAL:
            assert contents(server) == before, (case.name, str(reply))
        return str(reply)
    return ""


def commands_of(server: RealServer, case: Case) -> list[str]:
    """Return what a step calls."""
    entry = prepared(server, case)
    server.command("CONFIG", "RESETSTAT")
    before = contents(server)
    server.command("CONFIG", "RESETSTAT")
    assert not isinstance(case.run(server, entry), Exception)
    stats = server.command("INFO", "commandstats").decode()
    assert contents(server) != before, "it found nothing to do"
    names = [line.partition(":")[0].removeprefix("cmdstat_") for line in stats.splitlines() if "cmdstat_" in line]
    return [
        name
        for name in names
        if name not in ("eval", "info", "ping", "config|resetstat", "dump", "keys", "pexpiretime", "xrevrange")
    ]


def test_every_script_has_its_case() -> None:
    """A new script is tried as all others are."""
    names = {
        file.name.removesuffix(".lua") for file in files("streamq.scripts").iterdir() if file.name.endswith(".lua")
    }
    assert {name for name in names if not name.startswith("_")} == {case.step for case in CASES.values()} | READING


@pytest.mark.parametrize("name", CASES)
def test_a_key_of_another_type_has_changed_nothing(real_server, name):
    """Each key in turn is a list, which nothing here is."""
    case = case_of(name)
    for key in case.keys:
        why = refused(real_server, case, lambda key=key: replace(real_server, key))
        assert not why or "WRONGTYPE" in why, (key, why)


def case_of(name: str) -> Case:
    return replace_fields(CASES[name], name=name)


def replace(server: RealServer, key: str) -> None:
    server.command("DEL", key)
    server.command("LPUSH", key, "theirs")


@pytest.mark.parametrize("older", [False, True], ids=["", "before-7"])
@pytest.mark.parametrize("name", CASES)
def test_a_missing_command_has_changed_nothing(real_server, name, older):
    """Each command that the step calls is taken away in turn. Before Redis 7 a script cannot ask what it may do."""
    case = replace_fields(case_of(name), older=older)
    for command in commands_of(real_server, case):
        deny = lambda command=command: limited(real_server, f"-{command}", "~*", "&*")  # noqa: E731
        why = refused(real_server, case, deny, "limited")
        optional = OPTIONAL.get(command, set())
        assert why or optional is None or case.step in optional, (command, "was not missed")


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_is_missing_for_one_key_alone(real_server, name):
    """It has changed nothing, and the key that is named is that one: rules may allow a command on some keys alone."""
    case = case_of(name)
    keys = list(dict.fromkeys(case.keys))
    for command in commands_of(real_server, case):
        for key in keys if command not in KEYLESS else ():
            others = " ".join(f"~{other}" for other in keys if other != key) or "resetkeys"
            rules = (f"-{command}", "~*", "&*", f"(+{command} {others})")
            why = refused(real_server, case, lambda rules=rules: limited(real_server, *rules), "limited")
            if named := _NAMED.search(why):
                assert named.groups() == (command.partition("|")[0], key), (command, key, why)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_key_or_channel_has_changed_nothing(real_server, name):
    """Each key is taken away in turn. Without a right on channels the step does its work."""
    case = case_of(name)
    for key in dict.fromkeys(case.keys):
        others = [f"~{other}" for other in case.keys if other != key]
        assert refused(real_server, case, lambda others=others: limited(real_server, *others, "&*"), "limited")
    assert not refused(real_server, case, lambda: limited(real_server, "~*", "resetchannels"), "limited")


@pytest.mark.parametrize("name", CASES)
def test_a_stream_whose_ids_are_used_up_has_changed_nothing(real_server, name):
    """Each stream in turn has had the largest id; then all but one that is left."""
    case = case_of(name)
    for key in case.keys:
        for last in (FULL, FULL[:-1] + "4"):

            def exhaust(key: str = key, last: str = last) -> None:
                kind = real_server.command("TYPE", key)
                if kind == b"stream":
                    real_server.command("XSETID", key, last)
                elif kind == b"none" and key in ("next", "last"):
                    real_server.command("XADD", key, last, *FIELDS)

            why = refused(real_server, case, exhaust)
            assert not why or "exhausted" in why, (key, why)


@pytest.mark.parametrize("name", CASES)
def test_a_full_or_read_only_server_has_changed_nothing(real_server, name):
    """What settles still settles on a server out of memory; nothing does on a replica."""
    case = case_of(name)
    full = lambda: real_server.command("CONFIG", "SET", "maxmemory", 1)  # noqa: E731
    try:
        why = refused(real_server, case, full)
    finally:
        real_server.command("CONFIG", "SET", "maxmemory", 0)
    assert not why or "OOM" in why
    if case.step in SETTLES:
        assert not why
    replica = lambda: real_server.command("REPLICAOF", "127.0.0.1", 1)  # noqa: E731
    try:
        why = refused(real_server, case, replica)
    finally:
        real_server.command("REPLICAOF", "NO", "ONE")
    assert "READONLY" in why or case.step in PIECEMEAL
