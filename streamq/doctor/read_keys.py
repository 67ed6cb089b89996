"""Reads the keys in the namespace by a bounded SCAN, and compares them with the keys that `wire/keys.py` defines."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from streamq.doctor.observations import KeyObservations
from streamq.doctor.queries import SAMPLE, Queries, rows, text
from streamq.wire.keys import RESERVED, Keys
from streamq.wire.tiers import Tier

_SCAN_STEP: Final = 1000  # keys that one SCAN command scans
_MAX_MET: Final = 10_000  # most keys of the namespace that are checked one by one

TYPES: Final = {
    "stream": "stream", "delayed": "zset", "messages": "hash", "alive": "zset", "leases": "hash", "crashes": "hash",
    "dead": "stream", "stats": "hash", "totals": "hash", "result": "string", "accepted": "string",
    "dedup": "string", "seen": "string", "latest": "hash",
    "durable": "string", "circuit": "hash", "circuits": "zset", "rate": "hash", "limits": "zset",
    "permits": "zset", "called": "zset", "line": "zset", "progress": "string", "join": "hash", "once": "hash",
    "schedules": "hash", "ticks": "zset", "ticked": "hash", "workflow": "hash",
    "operation": "hash", "operations": "zset",
}  # fmt: skip
"""The type of each key, by the field or method of `wire/keys.py` that returns its name."""
WITH_TTL: Final = frozenset({
    "alive", "leases", "crashes", "stats", "totals", "result", "progress", "accepted",
    "dedup", "latest", "seen", "durable", "circuit", "circuits", "join", "once", "rate",
    "limits", "permits", "called", "line", "workflow", "operation", "operations",
})  # fmt: skip
"""The kinds of keys that have a TTL."""


class KeyCatalogue:
    """Finds the kind of a key from its name. The names and prefixes come from `wire/keys.py`."""

    def __init__(self, keys: Keys, tiers: Iterable[Tier]) -> None:
        self._exact = {name: kind for tier in keys.tiers for kind, name in asdict(tier).items()}
        self._prefixes: dict[str, str] = {}
        for kind, member in vars(Keys).items():
            if isinstance(member, property):
                self._exact[getattr(keys, kind)] = kind
            elif kind in ("stats", "join"):  # these keys of any group
                name = keys.stats(0) if kind == "stats" else keys.join("")
                self._prefixes[kind] = name.partition(f":{keys.group}:")[0] + ":"
            elif inspect.isfunction(member) and not kind.startswith("_"):
                self._prefixes[kind] = str(member(keys, ""))
        (shape,) = Keys.of("s", "g", [Tier("t", stream="s")]).tiers
        suffixes = {kind: name.removeprefix("s") for kind, name in asdict(shape).items() if kind != "stream"}
        self._suffixes = {
            kind: re.compile(re.escape(suffix[:-1]) + ".+$" if suffix.endswith(":g") else re.escape(suffix) + "$")
            for kind, suffix in suffixes.items()
        }
        self._own_streams = {tier.stream or f"{keys.namespace}:{tier.name}" for tier in tiers}

    def __repr__(self) -> str:
        return f"<KeyCatalogue of {len(self._exact)} names and {len(self._prefixes)} prefixes>"

    def kind_of(self, name: str) -> str | None:
        """Return the kind of a key, None if the name is unknown for the tiers of this broker."""
        if name in self._exact:
            return self._exact[name]
        for kind, prefix in self._prefixes.items():
            if name.startswith(prefix):
                return kind
        return next((kind for stream, kind in self.candidates(name) if stream in self._own_streams), None)

    def candidates(self, name: str) -> list[tuple[str, str]]:
        """Return the streams that a key may belong to, each with the kind that the key would have."""
        return [
            (name[: match.start()], kind)
            for kind, suffix in self._suffixes.items()
            if (match := suffix.search(name)) is not None
        ]


async def read_keys(queries: Queries, tiers: Iterable[Tier], max_scanned: int) -> KeyObservations | None:
    """Scan at most about `max_scanned` keys and check those of the namespace. None if SCAN is not allowed."""
    store = queries.store
    names, scanned, complete = await _scan(queries, store.keys.namespace, max_scanned)
    if names is None:
        return None
    types: dict[str, str | None] = {}
    ttls: dict[str, int | None] = {}
    for at in range(0, len(names), 500):
        batch = names[at : at + 500]
        replies = await queries.ask(*(("TYPE", name) for name in batch), *(("PTTL", name) for name in batch))
        types.update(zip(batch, (None if reply is None else text(reply) for reply in replies), strict=False))
        ttls.update(zip(batch, replies[len(batch) :], strict=False))
    catalogue = KeyCatalogue(store.keys, tiers)
    unknown: dict[str, str] = {}
    wrong: dict[str, str] = {}
    without_ttl: list[str] = []
    by_kind: dict[str, list[str]] = {}
    unread = 0
    streams = {name for name in names if catalogue.kind_of(name) is None and types[name] == "stream"}
    for name in names:
        type_, kind = types[name], catalogue.kind_of(name) or _kind_in_other_tier(catalogue, name, streams)
        unread += type_ is None
        if type_ is None or type_ == "none" or name in streams:
            continue
        if kind is None:
            unknown[name] = type_
        elif type_ != TYPES.get(kind, type_):
            wrong[name] = type_
        elif kind in WITH_TTL and ttls[name] == -1:
            without_ttl.append(name)
        if kind is not None and name not in wrong and len(by_kind.setdefault(kind, [])) < SAMPLE:
            by_kind[kind].append(name)
    return KeyObservations(
        scanned=scanned, met=len(names), complete=complete, unread=unread,
        unknown=dict(sorted(unknown.items())[:SAMPLE]),
        streams=tuple(sorted(filter(_may_be_tier, streams))[:SAMPLE]),
        without_ttl=tuple(sorted(without_ttl)[:SAMPLE]), wrong=wrong,
        by_kind={kind: tuple(some) for kind, some in by_kind.items()},
        joins=tuple(name for name in names if types[name] == "hash" and catalogue.kind_of(name) == "join"),
    )  # fmt: skip


def _may_be_tier(stream: str) -> bool:
    """May this be the stream of a tier? `queue:shop:dead` has the dead letters of the namespace `queue:shop`."""
    return RESERVED.isdisjoint(stream.split(":")[1:])


def _kind_in_other_tier(catalogue: KeyCatalogue, name: str, streams: set[str]) -> str | None:
    """Return the kind of a key that belongs to a stream outside the broker's tiers."""
    return next((kind for stream, kind in catalogue.candidates(name) if stream in streams), None)


async def _scan(queries: Queries, namespace: str, max_scanned: int) -> tuple[list[str] | None, int, bool]:
    """Return the names in a namespace, how many keys were scanned, and whether the scan is complete."""
    names: dict[str, None] = {}
    cursor, scanned = "0", 0
    pattern = namespace.replace("\\", "\\\\") + ":*"  # a namespace has none of * ? [ ]
    while scanned < max_scanned and len(names) < _MAX_MET:
        step = min(_SCAN_STEP, max_scanned - scanned)
        reply = await queries.one("SCAN", cursor, "MATCH", pattern, "COUNT", step)
        if reply is None:
            return None, 0, False
        scanned += step
        names.update(dict.fromkeys(map(text, rows(reply[1]))))
        cursor = text(reply[0])
        if cursor == "0":
            return list(names), scanned, True
    return list(names), scanned, False
