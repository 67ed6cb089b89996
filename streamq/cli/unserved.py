"""Says that nobody reads the queue of a task, while others of the server are read: it was meant for one of those."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from streamq.errors import BrokerError
from streamq.queue.read_queues import queues_read_beside
from streamq.wire.command_line import tier_names

if TYPE_CHECKING:
    from streamq.broker import RedisBroker

_MOST_NAMED = 10


async def unserved(broker: RedisBroker, stream: str) -> str:
    """Return that no worker has read this stream, and what is read instead, as a sentence; "" if it is no mistake.

    Raises nothing: this is a courtesy.
    """
    embedded = broker.url.startswith(("memory:", "embedded:"))
    try:
        found = await queues_read_beside(broker.store, stream, embedded=embedded)
    except BrokerError:
        return ""
    namespace = broker.keys.namespace
    if served := tier_names(namespace, found.streams):
        unknown = not {tier.name for tier in broker.tiers}.issuperset(served)
        options = shlex.join(("--tiers", ",".join(served)))
        remedy = f"; if the queue has tiers of its own, give {options} and --tier NAME, or --app" if unknown else ""
        return (
            f"{stream} has no consumer group: no worker has served it yet, and a task waits there; there are groups "
            f"for the tier{'s' * (len(served) > 1)} {_first(served)}{remedy}"
        )
    if found.namespaces:
        return (
            f"no worker has served the namespace {namespace} yet, and a task waits there; workers have served "
            f"{_first(found.namespaces)}: give --namespace, or --app"
        )
    return ""


def _first(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
