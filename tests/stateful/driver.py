"""The real thing, beside the model: a server, a broker on it, and time that passes when told.

On `memory` the server's clock stands still unless it is advanced, so every figure is exact. A
real server's clock runs, and cannot be moved; so time is let pass by moving what lies in Redis into
the past: entries age by `XCLAIM ... IDLE`, scores and TTLs shrink.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from streamq import RedisBroker
from streamq.clock import Clock
from streamq.embedded import MemoryServer
from streamq.queue.store import Store
from streamq.testing.clock import START
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.keys import Keys, TierKeys
from streamq.wire.message import pack_flat
from streamq.wire.tiers import Tier
from tests.stateful.model import EntryId, Group, Model
from tests.stateful.model import spelt_id as spelt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamq.client import Command
    from tests.servers import RealServer

TIERS = (Tier("high", weight=2, threshold=50), Tier("low", weight=1))
GROUPS = ("workers", "others")
MAX_DEAD = 3
DRIFT = 8_000  # ms by which a real server's clock and the model's may differ: what one step takes on a busy machine


class Server:
    """A server and an open broker, for all examples of one test. Time is in milliseconds."""

    def __init__(self, real: RealServer | None, portal: BlockingPortal) -> None:
        self.real = real
        self.now = int(START * 1000)
        self.shifted = 0  # ms by which all that lies in a real server was moved into the past
        self._portal = portal
        self._memory = MemoryServer.named("stateful", clock=lambda: self.now / 1000) if real is None else None
        url = "memory://stateful" if real is None else real.url
        clock = Clock(now=lambda: self.now / 1000) if real is None else Clock()
        self.broker = RedisBroker(url, tiers=TIERS, dead_letters=DeadLetterBound(MAX_DEAD), clock=clock)

    @property
    def exact(self) -> bool:
        return self.real is None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, real: RealServer | None, backend: str) -> Iterator[Server]:
        """Open a broker under this backend, in a thread of its own."""
        MemoryServer.discard("stateful")
        with start_blocking_portal(backend) as portal:
            server = cls(real, portal)
            with portal.wrap_async_context_manager(server.broker):
                yield server

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call an async function and wait for it."""
        return self._portal.call(function, *args)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip; raises the first error."""
        return list(self.run(self.broker.store.call, commands)) if commands else []

    def fresh(self, groups: Sequence[str]) -> dict[str, Store]:
        """Empty it, begin anew in time, and return a store for each group."""
        self.call([("FLUSHALL",)])
        self.now, self.shifted = int(START * 1000), 0
        stores = {}
        for name in groups:
            keys = Keys.of("queue", name, TIERS)
            stores[name] = Store(
                self.broker.client, keys, TIERS, bound=lambda: self.broker.dead_letters, clock=self.broker.clock
            )
            self.run(stores[name].ensure_groups)
        if not self.exact:
            seconds, micros = self.call([("TIME",)])[0]
            self.now = int(seconds) * 1000 + int(micros) // 1000
        return stores

    def unix(self, ms: int) -> float:
        """Return a moment of the model in seconds of the server's clock."""
        return (ms - self.shifted) / 1000

    def advance(self, ms: int, model: Model, stores: dict[str, Store]) -> None:
        """Let time pass."""
        self.now += ms
        if self.exact:
            return
        self.shifted += ms
        commands: list[Command] = []
        for name, store in stores.items():
            for at, keys in enumerate(store.keys.tiers):
                group = model.tiers[at].groups[name]
                for entry, held in group.pending.items():
                    idle = max(0, model.now - held.since) + ms
                    commands.append(("XCLAIM", keys.stream, name, held.owner, 0, spelt(entry), "IDLE", idle, "JUSTID"))
                commands += [("ZINCRBY", keys.alive, -ms, who) for who in group.alive]
        for at, keys in enumerate(self.broker.keys.tiers):
            commands += [("ZINCRBY", keys.delayed, -ms, member) for member in model.tiers[at].delayed]
        self.call(commands)
        names = self.call([("KEYS", "*")])[0]
        lives = self.call([("PTTL", name) for name in names])
        self.call([("PEXPIRE", name, left - ms) for name, left in zip(names, lives, strict=True) if left >= 0])


@dataclass(slots=True)
class Seen:
    """Everything that lies in Redis: `facts` to be equal, `times` (ms from now) to be close."""

    facts: dict[Any, Any] = field(default_factory=dict)
    times: dict[Any, float] = field(default_factory=dict)
    now: int = 0  # by the server's clock
    dues: dict[tuple[int, str], int] = field(default_factory=dict)  # (tier, member) -> score, as it is


def look(server: Server, stores: dict[str, Store]) -> Seen:
    """Read it all."""
    seen, commands = Seen(), list[Any]()

    def ask(label: Any, *command: Any) -> None:
        commands.append((label, command))

    for at, keys in enumerate(server.broker.keys.tiers):
        ask(("entries", at), "XRANGE", keys.stream, "-", "+")
        ask(("delayed", at), "ZRANGE", keys.delayed, 0, -1, "WITHSCORES")
        ask(("messages", at), "HGETALL", keys.messages)
    for name, store in stores.items():
        for at, keys in enumerate(store.keys.tiers):
            ask(("pending", at, name), "XPENDING", keys.stream, name, "-", "+", 10_000)
            ask(("groups", at, name), "XINFO", "GROUPS", keys.stream)
            ask(("alive", at, name), "ZRANGE", keys.alive, 0, -1, "WITHSCORES")
            ask(("leases", at, name), "HGETALL", keys.leases)
            ask(("crashes", at, name), "HGETALL", keys.crashes)
    ask(("dead",), "XRANGE", server.broker.keys.dead, "-", "+")
    ask(("keys",), "KEYS", "*")
    ask(("time",), "TIME")
    replies = server.call([command for _, command in commands])
    found = {label: reply for (label, _), reply in zip(commands, replies, strict=True)}
    seconds, micros = found.pop(("time",))
    now = int(seconds) * 1000 + int(micros) // 1000
    seen.now = now
    for label, reply in found.items():
        _note(seen, label, reply)
    names = sorted(name.decode() for name in found["keys",])
    for name, left in zip(names, server.call([("PTTL", name) for name in names]), strict=True):
        if left >= 0:
            seen.times["ttl", name] = left
    _note_values(seen, server, names)
    seen.facts["keys",] = {name: ("ttl", name) in seen.times for name in names}
    return seen


def _note(seen: Seen, label: Any, reply: Any) -> None:
    facts, times = seen.facts, seen.times
    match label[0]:
        case "entries" | "dead":
            facts[label] = {_entry(entry): texts(flat) for entry, flat in reply}
        case "delayed" | "alive":
            scores = {name.decode(): int(score) for name, score in zip(reply[::2], reply[1::2], strict=True)}
            facts[label] = set(scores)
            times.update({(*label, name): score - seen.now for name, score in scores.items()})
            if label[0] == "delayed":
                seen.dues.update({(label[1], name): score for name, score in scores.items()})
        case "messages" | "leases" | "crashes":
            facts[label] = texts(reply)
        case "pending":
            facts[label] = {_entry(row[0]): row[1].decode() for row in reply}
            times.update({(*label, _entry(row[0])): -float(row[2]) for row in reply})
        case "groups":
            groups = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in reply]
            lasts = {group[b"name"].decode(): _entry(group[b"last-delivered-id"]) for group in groups}
            facts[label] = lasts[label[2]]


def _note_values(seen: Seen, server: Server, names: list[str]) -> None:
    """The strings and the counters."""
    strings = [name for name in names if name.split(":")[1] in ("result", "id", "dedup")]
    for name, value in zip(strings, server.call([("GET", name) for name in strings]), strict=True):
        seen.facts["string", name] = value.decode()
    counters = [name for name in names if name.split(":")[1] == "stats"]
    for name, flat in zip(counters, server.call([("HGETALL", name) for name in counters]), strict=True):
        seen.facts["counters", name] = {what: int(amount) for what, amount in texts(flat).items()}


def expected(model: Model, stores: dict[str, Store]) -> Seen:
    """Say the same of the model."""
    seen, ttls = Seen(), dict[str, int | None]()
    store = next(iter(stores.values()))
    for at, (tier, keys) in enumerate(zip(model.tiers, store.keys.tiers, strict=True)):
        ttls[keys.stream] = None
        seen.facts["entries", at] = tier.entries
        seen.facts["delayed", at] = set(tier.delayed)
        seen.facts["messages", at] = {member: pack_flat(flat).decode() for member, (_, flat) in tier.delayed.items()}
        for member, (due, _) in tier.delayed.items():
            seen.times["delayed", at, member] = due - model.now
            ttls[keys.delayed] = ttls[keys.messages] = None
    for name, one in stores.items():
        for at, keys in enumerate(one.keys.tiers):
            _expect_group(seen, ttls, (at, name), model.tiers[at].groups[name], keys, model.now)
    seen.facts["dead",] = model.dead
    if model.anybody_died:
        ttls[store.keys.dead] = None
    for key, (value, ends) in model.kept.items():
        seen.facts["string", key], ttls[key] = value, ends
    for key, (counters, ends) in model.stats.items():
        seen.facts["counters", key], ttls[key] = counters, ends
    seen.facts["keys",] = {name: ends is not None for name, ends in sorted(ttls.items())}
    seen.times.update({("ttl", name): ends - model.now for name, ends in ttls.items() if ends is not None})
    return seen


def _expect_group(
    seen: Seen, ttls: dict[str, int | None], where: tuple[int, str], group: Group, keys: TierKeys, now: int
) -> None:
    """What one group is to know of one tier."""
    facts, times = seen.facts, seen.times
    facts["pending", *where] = {entry: held.owner for entry, held in group.pending.items()}
    times.update({("pending", *where, entry): held.since - now for entry, held in group.pending.items()})
    facts["groups", *where] = group.last
    facts["alive", *where] = set(group.alive)
    times.update({("alive", *where, who): until - now for who, until in group.alive.items()})
    facts["leases", *where] = {who: str(lease) for who, lease in group.leases.items()}
    marks = {f"{spelt(entry)}:alone": who for entry, who in group.alone.items()}
    marks |= {f"{spelt(entry)}:cancel": "1" for entry in group.cancelled}
    facts["crashes", *where] = marks | {spelt(entry): " ".join(who) for entry, who in group.crashes.items()}
    if group.alive:
        ttls[keys.alive] = ttls[keys.leases] = group.liveness_ends
    if group.crashes or group.alone or group.cancelled:
        ttls[keys.crashes] = group.evidence_ends


def compare(server: Server, found: Seen, wanted: Seen) -> None:
    """Raise AssertionError where they differ."""
    for label in wanted.facts | found.facts:
        assert found.facts.get(label) == wanted.facts.get(label), f"{label}: found, then wanted"
    assert found.times.keys() == wanted.times.keys()
    for label, ms in wanted.times.items():
        late = ms - found.times[label]  # a real clock has run since
        assert late == 0 if server.exact else -DRIFT <= late <= DRIFT, f"{label}: {found.times[label]} for {ms}"


def adopt(server: Server, found: Seen, model: Model) -> None:
    """Have the model know what time it is on a real server, and by the millisecond what is due when."""
    model.now = found.now + server.shifted
    for (at, member), due in found.dues.items():
        model.tiers[at].delayed[member] = (due + server.shifted, model.tiers[at].delayed[member][1])


def texts(flat: Sequence[bytes]) -> dict[str, str]:
    """Return a flat reply as a dict."""
    return {key.decode(): value.decode() for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _entry(raw: bytes) -> EntryId:
    ms, _, number = raw.decode().partition("-")
    return int(ms), int(number)
