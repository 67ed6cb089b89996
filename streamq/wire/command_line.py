"""Commands of streamq in texts: with the options that select the same keys, and quoted for a shell. Pure.

A remedy is copied as it stands, so it must be about the queue that it was said of. A URL is in none of them: it may
have a password, and whoever reads the text has set it already.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from streamq.wire.keys import RESERVED, Keys
from streamq.wire.names import is_name
from streamq.wire.tiers import DEFAULT_TIERS

DEFAULT_NAMESPACE: Final = "queue"
DEFAULT_GROUP: Final = "workers"


def key_options(keys: Keys, *, streams: Iterable[str] | None = None, tiers: bool = True) -> tuple[str, ...]:
    """Return the options that select these keys, without those that are the default.

    `streams` are others than those of the keys. `tiers=False` leaves out `--tiers`, which `streamq worker` has in
    another sense: it serves tiers that a broker in its modules declares.
    """
    namespace = keys.namespace
    if streams is None:
        served = [tier.stream for tier in keys.tiers]
        streams = [*served, *sorted(keys.streams.difference(served))]
    chosen, implied = _tier_options(namespace, list(streams)), DEFAULT_NAMESPACE
    if chosen[:1] == ("--queue",):
        implied = chosen[1].rpartition(":")[0] or chosen[1]
    elif not tiers:
        chosen = ()
    options = [] if namespace == implied else ["--namespace", namespace]
    options += [] if keys.group == DEFAULT_GROUP else ["--group", keys.group]
    return (*options, *chosen)


def streamq_command(keys: Keys, *words: str, streams: Iterable[str] | None = None) -> str:
    """Return a command of streamq about these keys, or about other `streams` of their namespace, for a shell."""
    return shlex.join(("streamq", *words, *key_options(keys, streams=streams)))


def worker_command(keys: Keys, *, streams: Iterable[str] | None = None, weights: str = "") -> str:
    """Return the command that starts a worker of these keys; `weights` are those of the tiers that it is to serve."""
    options = key_options(keys, streams=streams, tiers=False)
    serve = ("--tiers", weights) if weights and "--queue" not in options else ()
    return shlex.join(("streamq", "worker", "app.tasks", *options, *serve))


def in_quotes(command: str) -> str:
    """Return a command between quotes that it does not have, as a part of a sentence."""
    quote = '"' if "'" in command else "'"
    return f"{quote}{command}{quote}"


def tier_names(namespace: str, streams: Iterable[str]) -> list[str]:
    """Return the names of the tiers that have these streams by themselves, for `--tiers`; others have none there."""
    parted = [stream.removeprefix(f"{namespace}:") for stream in streams if stream.startswith(f"{namespace}:")]
    return [name for name in parted if is_name("tier", name) and name not in RESERVED and not set(name) & set(",=")]


def _tier_options(namespace: str, streams: list[str]) -> tuple[str, ...]:
    if set(streams) == {f"{namespace}:{tier.name}" for tier in DEFAULT_TIERS}:
        return ()
    names = tier_names(namespace, streams)
    return ("--tiers", ",".join(names)) if len(streams) > 1 and names else ("--queue", streams[0])
