"""The bounds of a workflow: where its steps go, how many there are, and what they take when they are sent. Pure.

A group is sent as one message for each member, and each of these carries what comes after the group. So a message of
some kilobytes could become gigabytes in one step, which no other bound sees. `workflow_bytes` adds up what the messages
of a workflow take at the same time, without building them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamq.errors import UndecodableError
from streamq.wire.bounds import MEMBERS, WORKFLOW_BYTES
from streamq.wire.workflow_steps import GroupMemberEnd, NextGroup, NextStep, Stage

_KEYS = 64  # bytes, about, of a stage beside its fields


def check_stages(stages: Sequence[Stage], may_send_to: Callable[[str], bool]) -> None:
    """Check the later stages of a message. `may_send_to` says whether a stream belongs to its namespace.

    Raises UndecodableError if a step goes elsewhere, if there are too many, or if they would become too large.
    """
    steps = _steps(stages)
    if len(steps) > MEMBERS.highest:
        raise UndecodableError(f"field 'then' has {len(steps)} steps, and at most {MEMBERS.highest:,} are read")
    for step in steps:
        if not may_send_to(step.stream):
            raise UndecodableError(
                f"field 'then' sends to {step.stream[:80]!r}, which is no stream of a tier of this namespace"
            )
    size = workflow_bytes(stages)
    if size not in WORKFLOW_BYTES:
        raise UndecodableError(
            f"field 'then' would become {size:,} bytes at a time, and at most {WORKFLOW_BYTES.highest:,} are sent: "
            "each member of a group carries what comes after the group"
        )


def workflow_bytes(stages: Sequence[Stage], after: int = 0) -> int:
    """Return about how many bytes the messages of a workflow take at the same time, at most.

    `after` are the bytes that each of its messages carries in addition.
    """
    most = 0
    for stage in reversed(stages):
        match stage:
            case NextGroup(members):
                own = sum(_size(member) for member in members)
                most = max(most, sum(workflow_bytes(member, after) for member in members))
            case _:
                own = _size((stage,))
                most = max(most, own + after)
        after += own
    return most


def _size(stages: Sequence[Stage]) -> int:
    """Return about how many bytes stages take as a field."""
    total = 0
    for stage in stages:
        match stage:
            case NextStep(stream, fields):
                total += _KEYS + len(stream) + sum(map(len, fields)) + 4 * len(fields)
            case NextGroup(members):
                total += _KEYS + sum(map(_size, members))
            case GroupMemberEnd():
                total += _KEYS
    return total


def _steps(stages: Sequence[Stage]) -> list[NextStep]:
    """Return all steps, those of members included."""
    found: list[NextStep] = []
    for stage in stages:
        if isinstance(stage, NextStep):
            found.append(stage)
        elif isinstance(stage, NextGroup):
            for member in stage.members:
                found += _steps(member)
    return found
