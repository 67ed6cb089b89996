"""Commands of streamq in texts: with the options that select the same keys, and quoted for a shell. Pure.

A remedy is copied as it stands, so it must be about the queue that it was said of. A URL is in none of them: it may
have a password, and whoever reads the text has set it already.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from streamq.wire.keys import RESERVED, Keys
from streamq.wire.names import is_name
from streamq.wire.tiers import DEFAULT_TIERS

DEFAULT_NAMESPACE: Final = "queue"
DEFAULT_GROUP: Final = "workers"
_NO_PRIORITY: Final = 2_000_000_000  # a threshold above all priorities that are in use
OWN_TIERS: Final = "--tiers NAME,... (STREAMQ_TIERS)"


_by_app: Final[dict[Keys, tuple[str, ...]]] = {}


def name_by_app(keys: Keys | None, *options: str) -> None:
    """Select these keys by an app in the commands of this process from now on: it has their server, too.

    `options` are those that select the app, none if a command finds it by itself. None: by the options of the keys.
    """
    _by_app.clear()
    if keys is not None:
        _by_app[keys] = options


def named_app() -> tuple[str, ...] | None:
    """Return the options that select the app of this process, None without one."""
    return next(iter(_by_app.values()), None)


def key_options(keys: Keys, *, streams: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return the options that select these keys, without those that are the default.

    `streams` are others than those of the keys.
    """
    namespace = keys.namespace
    chosen = _tier_options(namespace, _streams_of(keys) if streams is None else list(streams))
    implied = DEFAULT_NAMESPACE
    if chosen[:1] == ("--queue",):
        implied = chosen[1].rpartition(":")[0] or chosen[1]
    options = [] if namespace == implied else ["--namespace", namespace]
    options += [] if keys.group == DEFAULT_GROUP else ["--group", keys.group]
    return (*options, *chosen)


def streamq_command(keys: Keys, *words: str, streams: Iterable[str] | None = None) -> str:
    """Return a command of streamq about these keys, or about other `streams` of their namespace, for a shell."""
    by_app = None if "--url" in words else _by_app.get(keys)
    chosen = by_app is not None and not {"--queue", "--tiers"}.isdisjoint(by_app)
    if by_app is None or (streams is not None and (chosen or not by_app)):
        return shlex.join(("streamq", *words, *key_options(keys, streams=streams)))
    other = () if streams is None else _tier_options(keys.namespace, list(streams))
    return shlex.join(("streamq", *words, *by_app, *other))


def worker_command(keys: Keys, *, streams: Iterable[str] | None = None, weights: str = "") -> str:
    """Return the command that starts a worker of these keys; `weights` are those of the tiers that it is to serve.

    Tiers of one's own are in the broker of a module alone, and such a module takes no option that selects a queue.
    """
    options = key_options(keys, streams=streams)
    options = () if "--tiers" in options else options
    serve = ("--tiers", weights) if weights and "--queue" not in options else ()
    return shlex.join(("streamq", "worker", "app.tasks", *options, *serve))


def worker_remedy(keys: Keys, *, streams: Iterable[str] | None = None, weights: str = "") -> str:
    """Return the command that `worker_command` returns, with a word about the broker that a module has or must have."""
    options = key_options(keys, streams=streams)
    command = worker_command(keys, streams=streams, weights=weights)
    if "--tiers" in options:
        return f"{command} (app.tasks is a module whose broker has these tiers)"
    which = ", ".join(options[::2])
    return f"{command} (without {which} if app.tasks has a broker: that defines the queue)" if which else command


def own_tiers_forgotten(keys: Keys, names: Iterable[str]) -> bool:
    """May tiers of one's own have been forgotten? So it is if a key of the default tiers is among these names."""
    of_tiers = {name for tier in keys.tiers for name in asdict(tier).values()}
    return not _tier_options(keys.namespace, _streams_of(keys)) and not of_tiers.isdisjoint(names)


def bring_home(keys: Keys, stream: str) -> str:
    """Return what runs the tasks of a stream that no broker of the modules has: a worker, or a tier for a while.

    No new message goes to a tier with such a threshold, and handlers send by the same broker.
    """
    (name,) = tier_names(keys.namespace, [stream]) or ("other",)
    tier = f'"{name}"' if stream == f"{keys.namespace}:{name}" else f'"{name}", stream={json.dumps(stream)}'
    return (
        f"{shlex.join(('streamq', 'worker', 'app.tasks', *key_options(keys, streams=[stream])))} if app.tasks has no "
        f"broker; if it has one, add Tier({tier}, threshold={_NO_PRIORITY:_}) to its tiers, run its worker until the "
        "stream is empty and nothing is delayed there, and take the tier out again"
    )


def in_quotes(command: str) -> str:
    """Return a command between quotes that it does not have, as a part of a sentence."""
    quote = '"' if "'" in command else "'"
    return f"{quote}{command}{quote}"


def tier_names(namespace: str, streams: Iterable[str]) -> list[str]:
    """Return the names of the tiers that have these streams by themselves, for `--tiers`; others have none there."""
    parted = [stream.removeprefix(f"{namespace}:") for stream in streams if stream.startswith(f"{namespace}:")]
    return [name for name in parted if is_name("tier", name) and name not in RESERVED and not set(name) & set(",=")]


def _streams_of(keys: Keys) -> list[str]:
    served = [tier.stream for tier in keys.tiers]
    return [*served, *sorted(keys.streams.difference(served))]


def _tier_options(namespace: str, streams: list[str]) -> tuple[str, ...]:
    if set(streams) == {f"{namespace}:{tier.name}" for tier in DEFAULT_TIERS}:
        return ()
    names = tier_names(namespace, streams)
    return ("--tiers", ",".join(names)) if len(streams) > 1 and names else ("--queue", streams[0])
