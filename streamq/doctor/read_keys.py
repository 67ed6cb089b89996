"""Asks which keys lie in the namespace: a bounded SCAN, and what is documented of each name that it meets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from streamq.doctor.observations import KeyFacts
from streamq.doctor.queries import SAMPLE, Questions, rows, text
from streamq.wire.keys import Keys
from streamq.wire.tiers import Tier

_STEP: Final = 1000  # keys that the server looks at for one SCAN
_MOST_MET: Final = 10_000  # keys of the namespace that are looked at one by one

KINDS: Final = {
    "stream": "stream", "delayed": "zset", "messages": "hash", "alive": "zset", "leases": "hash", "crashes": "hash",
    "dead": "stream", "stats": "hash", "result": "string", "accepted": "string", "dedup": "string", "seen": "string",
    "latest": "hash",
    "durable": "string", "circuit": "hash", "circuits": "zset", "rate": "hash", "limits": "zset",
    "permits": "zset", "called": "zset", "line": "zset", "progress": "string", "join": "hash", "once": "hash",
    "schedules": "hash", "ticks": "zset", "ticked": "hash",
}  # fmt: skip
"""The type of each key, by the field or the method of `keys.py` that names it."""
MORTAL: Final = frozenset({
    "alive", "leases", "crashes", "stats", "result", "progress", "accepted",
    "dedup", "latest", "seen", "durable", "circuit", "circuits", "join", "once", "rate",
    "limits", "permits", "called", "line",
})  # fmt: skip
"""Those that have a TTL."""


class Catalogue:
    """Tells which key a name is, by asking `keys.py` for all that it can make."""

    def __init__(self, keys: Keys, tiers: Iterable[Tier]) -> None:
        self._exact = {name: what for tier in keys.tiers for what, name in asdict(tier).items()}
        self._prefixes: dict[str, str] = {}
        for what, member in vars(Keys).items():
            if isinstance(member, property):
                self._exact[getattr(keys, what)] = what
            elif what in ("stats", "join"):  # of any group
                name = keys.stats(0) if what == "stats" else keys.join("")
                self._prefixes[what] = name.partition(f":{keys.group}:")[0] + ":"
            elif inspect.isfunction(member) and not what.startswith("_"):
                self._prefixes[what] = str(member(keys, ""))
        (shape,) = Keys.of("s", "g", [Tier("t", stream="s")]).tiers
        ends = {what: name.removeprefix("s") for what, name in asdict(shape).items() if what != "stream"}
        self._satellites = {
            what: re.compile(re.escape(end[:-1]) + ".+$" if end.endswith(":g") else re.escape(end) + "$")
            for what, end in ends.items()
        }
        self._ours = {tier.stream or f"{keys.namespace}:{tier.name}" for tier in tiers}

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self._exact)} names and {len(self._prefixes)} prefixes>"

    def of(self, name: str) -> str | None:
        """Return what a key is, None if its name is not documented for any tier of ours."""
        if name in self._exact:
            return self._exact[name]
        for what, prefix in self._prefixes.items():
            if name.startswith(prefix):
                return what
        return next((what for stream, what in self.beside(name) if stream in self._ours), None)

    def beside(self, name: str) -> list[tuple[str, str]]:
        """Return the streams that a key may belong to, each with what it would be there."""
        return [
            (name[: found.start()], what)
            for what, end in self._satellites.items()
            if (found := end.search(name)) is not None
        ]


async def look_at_keys(questions: Questions, tiers: Iterable[Tier], most: int) -> KeyFacts | None:
    """Scan the namespace; the server looks at about `most` keys at most. None if it may not be scanned."""
    store = questions.store
    names, scanned, complete = await _scan(questions, store.keys.namespace, most)
    if names is None:
        return None
    kinds: dict[str, str | None] = {}
    ttls: dict[str, int | None] = {}
    for at in range(0, len(names), 500):
        some = names[at : at + 500]
        replies = await questions.ask(*(("TYPE", name) for name in some), *(("PTTL", name) for name in some))
        kinds.update(zip(some, (None if reply is None else text(reply) for reply in replies), strict=False))
        ttls.update(zip(some, replies[len(some) :], strict=False))
    catalogue = Catalogue(store.keys, tiers)
    unknown: dict[str, str] = {}
    wrong: dict[str, str] = {}
    immortal: list[str] = []
    streams = {name for name in names if catalogue.of(name) is None and kinds[name] == "stream"}
    for name in names:
        kind, what = kinds[name], catalogue.of(name) or _of_another_tier(catalogue, name, streams)
        if kind is None or kind == "none" or name in streams:
            continue
        if what is None:
            unknown[name] = kind
        elif kind != KINDS.get(what, kind):
            wrong[name] = kind
        elif what in MORTAL and ttls[name] == -1:
            immortal.append(name)
    return KeyFacts(
        scanned=scanned, met=len(names), complete=complete, unknown=dict(sorted(unknown.items())[:SAMPLE]),
        streams=tuple(sorted(streams)[:SAMPLE]), immortal=tuple(sorted(immortal)[:SAMPLE]), wrong=wrong,
    )  # fmt: skip


def _of_another_tier(catalogue: Catalogue, name: str, streams: set[str]) -> str | None:
    """Return what a key is beside a stream that is no tier of ours."""
    return next((what for stream, what in catalogue.beside(name) if stream in streams), None)


async def _scan(questions: Questions, namespace: str, most: int) -> tuple[list[str] | None, int, bool]:
    """Return the names in a namespace, how many keys the server looked at, and whether those were all."""
    names: dict[str, None] = {}
    cursor, scanned = "0", 0
    pattern = namespace.replace("\\", "\\\\") + ":*"  # a namespace has none of * ? [ ]
    while scanned < most and len(names) < _MOST_MET:
        step = min(_STEP, most - scanned)
        reply = await questions.one("SCAN", cursor, "MATCH", pattern, "COUNT", step)
        if reply is None:
            return None, 0, False
        scanned += step
        names.update(dict.fromkeys(map(text, rows(reply[1]))))
        cursor = text(reply[0])
        if cursor == "0":
            return list(names), scanned, True
    return list(names), scanned, False
