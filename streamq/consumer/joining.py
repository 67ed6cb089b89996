"""Joining the consumer group, on a server in whatever state: full, read-only, still loading, gone for a moment.

A worker can start while the server refuses writes, as long as its groups exist. What could not be written is tried
later: the loop that renews leases registers the consumer, and nothing is read before it has (`Consumer.registered`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from streamq.consumer.leases import LeaseKeeper
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.queue.remedies import TOO_MANY_CLIENTS, advised
from streamq.queue.server_errors import passes
from streamq.queue.store import Store

log = SafeLog("streamq")

_CONNECTION: Final = frozenset({"UNAVAILABLE", "UNKNOWN"})
_PAUSE: Final = 1.0  # seconds between two tries


async def create_groups(store: Store, note: Callable[[BrokerError | None], None]) -> None:
    """Create the streams and their groups, where they are missing; wait while the server refuses that for now.

    `note` is called with the error while this waits, and with None at the end. Raises BrokerError if waiting would not
    help: wrong credentials, missing rights, a key of another type, a server that could never be reached.
    """
    waiting = False
    while True:
        try:
            refused = (await store.ensure_groups()).refused
        except BrokerError as error:
            if not is_temporary(store, error):
                raise
            note(error)
            if not waiting:
                log.warning("%s; waiting for the server", advised(str(error), error.code), event="server_lost")
            waiting = True
            await anyio.sleep(_PAUSE)
        else:
            if refused is not None:
                what = "this user may not create groups" if refused.code == "NOPERM" else "the server refuses writes"
                why = advised(str(refused), refused.code)
                log.warning("%s (%s); the consumer groups exist, so this starts", what, why, event="groups_missing")
            note(None)
            return


async def register(leases: LeaseKeeper) -> None:
    """Renew for the first time: the server counts the consumer as alive. If it refuses for now, the loop does it later.

    Raises BrokerError if waiting would not help.
    """
    try:
        await leases.renew()
    except BrokerError as error:
        if not is_temporary(leases.store, error):
            raise


async def check_reading(store: Store, consumer: str) -> None:
    """Raise BrokerError if this user has the right to read no tier: the worker would run, and never do anything.

    It reads what this consumer holds, which is nothing. Whatever else is refused is found by the loops.
    """
    commands = store.read_commands.held_entries(consumer)
    try:
        replies = await store.attempt(commands)
    except BrokerError:
        return
    refused = [one for one in replies if isinstance(one, BrokerError) and one.code == "NOPERM"]
    if len(refused) == len(commands):
        raise await store.explain(refused[0], commands[0])


def is_temporary(store: Store, error: BrokerError) -> bool:
    """Return whether an error at the start may end by itself. A server that was never reached is a wrong address."""
    reached = store.client.ever_connected or TOO_MANY_CLIENTS in str(error)
    return passes(error) or (error.code in _CONNECTION and reached)
