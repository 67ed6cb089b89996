"""The kinds of poison: each writes messages that workers must survive, and breaks keys or rights that they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.fuzz import rubbish
from tests.poison import handlers
from tests.servers import RealServer

Fields = dict[str, Any]
MESSAGE_FIELDS = (
    "args", "kwargs", "priority", "attempt", "starts", "retries", "timeout", "result_ttl", "expires", "enqueued_at",
    "headers", "dedup", "dedup_until", "dedup_ttl", "then", "unknown_since",
)  # fmt: skip
FULL = "18446744073709551615-18446744073709551615"


@dataclass(frozen=True, slots=True)
class Site:
    """Where poison is put."""

    server: RealServer
    namespace: str
    user: str

    def command(self, *words: Any) -> Any:
        """Send a command by hand."""
        return self.server.command(*words)

    def key(self, name: str) -> str:
        """Return the name of a key."""
        return f"{self.namespace}:{name}"


def _nothing(_site: Site) -> None:
    """There is nothing to break."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of poison: one message of it, what is broken before, and how that is mended.

    `share` is how much of the usual number of messages is sent. `extra` is what the worker has (see `member.py`), and
    `usual` what the one has that it is compared with. `deaths` says that a message ends its worker.
    """

    name: str
    message: Callable[[Random, int], Fields]
    breaks: Callable[[Site], object] = _nothing
    mends: Callable[[Site], object] = _nothing
    share: float = 1.0
    extra: str = "none"
    usual: str = "none"
    deaths: int = 0


def _one(name: str, **fields: Any) -> Callable[[Random, int], Fields]:
    return lambda _random, _number: {"task": name, **fields}


def _hostile(places: Any) -> Callable[[Random, int], Fields]:
    return lambda random, _number: {"task": f"hostile.{random.choice(places)}"}


def _undecodable(random: Random, number: int) -> Fields:
    shapes: tuple[Fields, ...] = (
        {"task": b"\xff\xfe"}, {"task": "echo", "args": "nonsense"}, {"task": "echo", "kwargs": "[1]"},
        {"task": "echo", "args": "[" * 3000}, {"nothing": "at all"}, {"task": "echo", "headers": "7"},
        {"task": "", "args": "[]"}, {f"f{n}": "x" for n in range(300)}, {"task": "echo", "args": b"\x00" * 9000},
    )  # fmt: skip
    return shapes[number % len(shapes)]


def _options(random: Random, number: int) -> Fields:
    found: Fields = {"task": random.choice(("echo", "kept", "flaky")), "args": "[1]"}
    for name in random.sample(MESSAGE_FIELDS, k=2):
        found[name] = str(rubbish.number(random)) if random.random() < 0.6 else rubbish.raw(random)
    return found


def _step(stream: str) -> str:
    return json.dumps([{"send": stream, "fields": ["task", "echo", "id", "next"]}])


def _large(random: Random, number: int) -> Fields:
    size = random.choice((200_000, 900_000, 3_000_000))
    return {"task": random.choice(("echo", "nobody", "kept")), "args": json.dumps(["x" * size])}


def _deny(*rules: str) -> Callable[[Site], object]:
    return lambda site: site.command("ACL", "SETUSER", site.user, *rules)


def _allow(site: Site) -> None:
    site.command("ACL", "SETUSER", site.user, "~*", "&*", "+@all")


def _set(name: str) -> Callable[[Site], object]:
    return lambda site: (site.command("DEL", site.key(name)), site.command("SET", site.key(name), "of another"))


def _del(name: str) -> Callable[[Site], object]:
    return lambda site: site.command("DEL", site.key(name))


def _used_up(name: str) -> Callable[[Site], object]:
    return lambda site: site.command("XADD", site.key(name), FULL, "task", "echo")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("undecodable", _undecodable),
        Kind("options", _options),
        Kind("raised", _hostile(handlers.RAISED)),
        Kind("later", _hostile(handlers.LATER)),
        Kind("returned", _hostile(handlers.RETURNED)),
        Kind("contexts", _hostile(handlers.CONTEXTS)),
        Kind("scopes", _hostile(handlers.SCOPES)),
        Kind("hangs", _hostile(handlers.HANGS), share=0.2),
        Kind("unknown", lambda _, number: {"task": f"nobody.{number}"}),
        Kind("large", _large, share=0.3),
        Kind("retries", _one("flaky")),
        Kind("dead-key", _one("fail"), _set("dead"), _del("dead")),
        Kind("dead-used-up", _one("fail"), _used_up("dead"), _del("dead")),
        Kind(
            "dedup-key",
            _one("fail", dedup="k"),
            lambda site: site.command("RPUSH", site.key("dedup:k"), 1),
            _del("dedup:k"),
        ),
        Kind("messages-key", _one("flaky"), _set("standard:messages"), _del("standard:messages")),
        Kind("delayed-key", _one("later"), _set("standard:delayed"), _del("standard:delayed")),
        Kind("crashes-key", _one("fail"), _set("standard:crashes:workers"), _del("standard:crashes:workers")),
        Kind("next-key", lambda _, n: {"task": "echo", "then": _step("poisoned:next")}, _set("next"), _del("next")),
        Kind(
            "next-used-up",
            lambda _, n: {"task": "echo", "then": _step("poisoned:last")},
            _used_up("last"),
            _del("last"),
        ),
        Kind("next-elsewhere", lambda _, n: {"task": "echo", "then": _step("elsewhere")}),
        Kind("no-results", _one("kept"), _deny("resetkeys", "~poisoned:[^r]*"), _allow),
        Kind("no-retries", _one("flaky"), _deny("-hset"), _allow),
        Kind("no-publish", _one("later"), _deny("-publish"), _allow),
        Kind("no-dead", _one("fail"), _deny("-xlen"), _allow),
        Kind("no-counters", _one("fail"), _deny("-hincrby"), _allow),
        Kind("log-filter", _one("fail"), extra="filter"),
        Kind("listener", _one("echo"), extra="listener", usual="quiet-listener"),
        Kind("crash-loop", _one("deadly"), share=0.01, deaths=3),
    )
}
