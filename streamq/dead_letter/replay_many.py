"""Replays all dead letters that match, and returns their new ids: a call that keeps nothing, unlike an operation."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial

from streamq.dead_letter.filter import Matches
from streamq.dead_letter.groups import with_existing_groups
from streamq.dead_letter.pages import newest_id, pages
from streamq.dead_letter.replaying import PassedOver, Replay, checked_replay, stream_of
from streamq.errors import StreamqError
from streamq.queue.store import Store


async def replay_many(store: Store, matches: Matches | None, limit: int | None, retries: int | None) -> list[str]:
    """Replay those that match, at most `limit`, oldest first. What cannot be replayed is passed over and logged."""
    replayed, passed_over = list[str](), PassedOver()
    # A task that dies again during the replay is newer than this entry, so it is not replayed twice.
    async with aclosing(pages(store, await newest_id(store))) as some:
        async for page in some:
            chosen: list[Replay] = []
            for dead_letter in await with_existing_groups(store, page, partial(stream_of, store)):
                if matches is not None and not matches(dead_letter):
                    continue
                if limit is not None and len(replayed) + len(chosen) >= limit:
                    break
                try:
                    chosen.append(checked_replay(store, dead_letter, retries))
                except StreamqError as error:
                    passed_over.note(error)
            replies = await store.call([one.command(store) for one in chosen])
            for one, (entry, holder) in zip(chosen, replies, strict=True):
                if entry:
                    replayed.append(one.task_id)
                elif holder:
                    passed_over.note(one.held(holder))
            if limit is not None and len(replayed) >= limit:
                break
    passed_over.log_total(len(replayed))
    return replayed
