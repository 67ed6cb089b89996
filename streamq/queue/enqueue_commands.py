"""Commands that add a message to a stream or to the delayed set, and the command that withdraws it.

They are built from keys alone; nothing here sends. `queue.sending` decides which message is sent.
`SignedEnqueueCommands` are those of a broker with signing keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from streamq.client import Command, pack_one
from streamq.queue.enqueue_requests import GuardedEnqueue, NewestWinsEnqueue
from streamq.queue.side_effect_arguments import side_effect_arguments
from streamq.scripts import step
from streamq.wire.keys import Keys
from streamq.wire.message import Field, as_text, milliseconds, pack_flat
from streamq.wire.side_effects import SideEffect
from streamq.wire.signing import Signer
from streamq.wire.workflow_record import PlannedStep

_NOTHING_LEFT = ("", "")  # by an earlier task: the id is new
CANCEL_KEPT = 24 * 3600.0  # seconds that a mark is kept: the run of this entry is to be cancelled


class EnqueueCommands:
    """The commands that producers send, for one set of keys."""

    def __init__(self, keys: Keys, signer: Signer | None = None) -> None:
        self.keys = keys
        self._signer = signer

    def __repr__(self) -> str:
        return f"<EnqueueCommands {self.keys.namespace}>"

    def plain(self, tier: int, fields: Sequence[Field]) -> bytes:
        """Return the packed command that appends a message to its stream."""
        return pack_one(("XADD", self.keys.tiers[tier].stream, "*", *fields))

    def guarded(self, wanted: GuardedEnqueue) -> Command:
        """Return the command that accepts a task once per guard key, now or delayed."""
        keys = self.keys.tiers[wanted.tier]
        return step("enqueue")(
            [keys.stream, keys.delayed, keys.messages, *(key for key, _ in wanted.guards)],
            wanted.task_id, milliseconds(wanted.delay), _due(wanted), self.keys.wake, wanted.packed,
            *(_left_by(self.keys, wanted.task_id) if wanted.own_id else _NOTHING_LEFT),
            *(milliseconds(ttl) for _, ttl in wanted.guards), *wanted.fields,
        )  # fmt: skip

    def newest_wins(self, wanted: NewestWinsEnqueue) -> Command:
        """Return the command that accepts a task with a deduplication key for which the newest message wins."""
        rest = wanted.packed.removeprefix(b"[")
        return step(wanted.mode)(
            [
                self.keys.dedup(wanted.key), self.keys.latest(wanted.key), self.keys.accepted(wanted.task_id),
                *(name for keys in self.keys.tiers for name in (keys.stream, keys.delayed, keys.messages)),
            ],
            wanted.task_id, wanted.tier + 1, milliseconds(wanted.delay), _due(wanted), milliseconds(wanted.ttl),
            -1 if wanted.bound is None else milliseconds(wanted.bound), milliseconds(wanted.accepted), self.keys.wake,
            rest, *(_left_by(self.keys, wanted.task_id) if wanted.accepted else _NOTHING_LEFT), *wanted.fields,
        )  # fmt: skip

    def start_workflow(
        self, workflow_id: str, also: Sequence[SideEffect], guards: Sequence[str] = (), *, accepted: float,
        own_ids: Sequence[str] = (),
    ) -> Command:  # fmt: skip
        """Return the command that sends the first steps of a workflow, once per guard key within `accepted` seconds.

        `own_ids` are the task ids of its steps that earlier tasks may have had.
        """
        names, values = side_effect_arguments(self.keys, also, self._signer)
        left = [name for task_id in own_ids for name in (*_left_by(self.keys, task_id), self.keys.join(task_id))]
        return step("start_workflow")(
            [*guards, *names], workflow_id, len(guards), milliseconds(accepted), len(left), *left, *values
        )

    def stop_workflow(
        self, workflow_id: str, plan: Sequence[PlannedStep], payload: bytes, *, kept: float
    ) -> Command:  # fmt: skip
        """Return the command that cancels a workflow: the steps that were not sent get this result (see the script)."""
        names = [self.keys.result(one.task_id) for one in plan if one.keep]
        joined = [self.keys.join(one.task_id) for one in plan]
        return step("stop_workflow")(
            [self.keys.workflow(workflow_id), *names], self.keys.group, payload, milliseconds(kept),
            len(joined), *joined, *(milliseconds(one.keep) for one in plan),
        )  # fmt: skip

    def withdraw(
        self, tier: int, task_id: str, entry_id: str, also: Sequence[SideEffect] = (),
        members: Sequence[str] | None = None,
    ) -> Command:  # fmt: skip
        """Return the command that withdraws a task that was not delivered yet (see cancel.lua).

        `also` are the side effects of the withdrawal, `members` the possible names of the task in the delayed set.
        """
        members = (task_id, self.keys.retry_member(task_id)) if members is None else members
        keys = self.keys.tiers[tier]
        names, values = side_effect_arguments(self.keys, also, self._signer)
        return step("cancel")(
            [keys.stream, keys.delayed, keys.messages, keys.crashes, *names],
            entry_id, self.keys.wake, milliseconds(CANCEL_KEPT), len(members), *members, *values,
        )  # fmt: skip


class SignedEnqueueCommands(EnqueueCommands):
    """The commands that producers send, with every message signed."""

    def __init__(self, keys: Keys, signer: Signer) -> None:
        super().__init__(keys, signer)
        self._signs = signer

    def plain(self, tier: int, fields: Sequence[Field]) -> bytes:
        """Return the packed command that appends a message to its stream."""
        return super().plain(tier, self._signs.sign(self.keys.tiers[tier].stream, fields))

    def guarded(self, wanted: GuardedEnqueue) -> Command:
        """Return the command that accepts a task once per guard key, now or delayed."""
        fields = as_text(self._signs.sign(self.keys.tiers[wanted.tier].stream, wanted.fields))
        return super().guarded(replace(wanted, fields=fields, packed=pack_flat(fields)))

    def newest_wins(self, wanted: NewestWinsEnqueue) -> Command:
        """Return the command that accepts a task with a deduplication key for which the newest message wins."""
        fields = self._signs.sign_latest(wanted.fields)
        return super().newest_wins(replace(wanted, fields=fields, packed=pack_flat(fields)))


def _left_by(keys: Keys, task_id: str) -> tuple[str, str]:
    """Return the keys that an earlier task of this id may have left."""
    return keys.result(task_id), keys.progress(task_id)


def _due(wanted: GuardedEnqueue | NewestWinsEnqueue) -> int:
    """Return when a task is due, as the scripts expect it: Unix ms, 0 for after its delay, -1 for now."""
    if wanted.due is not None:
        return max(1, milliseconds(wanted.due))
    return -1 if wanted.delay <= 0 else 0
