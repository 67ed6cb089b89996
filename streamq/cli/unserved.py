"""Says that nobody reads the queue of a task, while others of the server are read: it was meant for one of those."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamq.errors import BrokerError
from streamq.queue.read_queues import queues_read_beside
from streamq.wire.command_line import tier_names

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.cli.server_options import ServerOptions

_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Unserved:
    """No worker has read a stream. `text` says so, with what is read instead: in other namespaces if `elsewhere`."""

    text: str
    elsewhere: bool


async def unserved(broker: RedisBroker, stream: str, server: ServerOptions) -> Unserved | None:
    """Return that no worker has read this stream, and what is read instead; None if it is no mistake.

    `server` are the options that were given: the remedy names others. Raises nothing: this is a courtesy.
    """
    embedded = broker.url.startswith(("memory:", "embedded:"))
    try:
        found = await queues_read_beside(broker.store, stream, embedded=embedded)
    except BrokerError:
        return None
    namespace = broker.keys.namespace
    if served := tier_names(namespace, found.streams):
        unknown = not {tier.name for tier in broker.tiers}.issuperset(served)
        options = shlex.join(("--tiers", ",".join(served)))
        by_app = "" if server.app else ", or --app"
        remedy = f"; if the queue has tiers of its own, give {options} and --tier NAME{by_app}" if unknown else ""
        text = (
            f"{stream} has no consumer group: no worker has served it yet; there are groups for the tier"
            f"{'s' * (len(served) > 1)} {_first(served)}{remedy}"
        )
        return Unserved(text, elsewhere=False)
    if found.namespaces:
        text = (
            f"no worker has served the namespace {namespace} yet; workers have served {_first(found.namespaces)}: "
            f"{_remedy(server)}"
        )
        return Unserved(text, elsewhere=True)
    return None


def _remedy(server: ServerOptions) -> str:
    """Return what to give so that the task goes to another namespace: not what was given already."""
    given = next((name for name in ("queue", "namespace") if name in server.explicit), None)
    if given is None:
        return "start a worker (streamq worker)" if server.app else "give --namespace, or --app"
    return f"give another --{given}, or {'leave it out' if server.app else '--app'}"


def _first(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
