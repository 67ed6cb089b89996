"""The consumer groups to which dead letters are replayed: a group that does not exist any more would run nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.errors import BrokerError
from streamq.queue.store import Store

_NAME = b"name"  # of a group, in the reply to XINFO GROUPS


async def with_existing_groups(
    store: Store, letters: Sequence[DeadLetterEntry], stream_of: Callable[[DeadLetterEntry], str | None]
) -> list[DeadLetterEntry]:
    """Return these dead letters; those of a group that their stream does not have belong to the store's group.

    `stream_of` returns the stream to which a dead letter is replayed, None for none. Asks the server about streams of
    which a dead letter belongs to another group than the store's. Where it does not say (a missing right), the dead
    letter keeps its group: workers check that, too.
    """
    own = store.keys.group
    streams = [stream_of(one) if one.options.get("group", own) != own else None for one in letters]
    asked = [stream for stream in dict.fromkeys(streams) if stream is not None]
    if not asked:
        return list(letters)
    replies = await store.attempt([("XINFO", "GROUPS", stream) for stream in asked])
    known = dict(zip(asked, map(_names, replies), strict=True))
    found: list[DeadLetterEntry] = []
    for letter, stream in zip(letters, streams, strict=True):
        names = None if stream is None else known[stream]
        if names is None or letter.options["group"].encode() in names:
            found.append(letter)
        else:
            found.append(replace(letter, options={**letter.options, "group": own}))
    return found


def _names(reply: list[list[bytes]] | BrokerError) -> set[bytes] | None:
    """Return the names of the groups of a stream, None if they are not known."""
    if isinstance(reply, BrokerError):
        return set() if reply.code == "NOGROUP" else None  # there is no stream
    return {flat[flat.index(_NAME) + 1] for flat in reply}
