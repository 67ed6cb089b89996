"""The side effects of a task's start and end, which happen in the same atomic step. Pure.

When a task is acknowledged, dead-lettered or withdrawn, its result may be kept for waiters, its deduplication key
freed, and further tasks sent. Here these are values. `queue.side_effect_arguments` gives them their keys,
`_side_effects.lua` carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, assert_never

import orjson

from streamq.errors import UndecodableError
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, dumps
from streamq.wire.workflow_record import RECORD_KEPT, WORKFLOW, StepPlace, StepState
from streamq.wire.workflow_steps import JoinMessage, NextMessage, Stage, next_messages, wanted_results

_OK = b'{"ok":'  # the beginning of a kept result
_FAILED = " before it failed ("
DEDUP, DEDUP_UNTIL, THEN = b"dedup", b"dedup_until", b"then"  # fields that give the end of a task side effects


@dataclass(frozen=True, slots=True)
class KeepResult:
    """The result of a task is kept for `ttl` seconds and published to its waiters. `payload` is JSON."""

    effect: ClassVar[str] = "keep_result"
    task_id: str
    ttl: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class FreeKey:
    """A deduplication key is freed, if this task still holds it."""

    effect: ClassVar[str] = "free_key"
    key: str
    task_id: str


@dataclass(frozen=True, slots=True)
class SendTask:
    """A task is sent to a stream. `fields` are flat, as in the stream."""

    effect: ClassVar[str] = "send_task"
    stream: str
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True)
class DelayTask:
    """A task is sent to a stream after `delay` seconds."""

    effect: ClassVar[str] = "delay_task"
    stream: str
    task_id: str
    fields: Sequence[Field]
    delay: float


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """A member of a group is done. Once all `size` are done, a task is sent to a stream after `delay` seconds.

    Results are kept for `keep` seconds. If `rest` is not empty, the list of results becomes the first argument of the
    task, and `rest` is the JSON after it.
    """

    effect: ClassVar[str] = "join_group"
    stream: str
    task_id: str
    fields: Sequence[Field]
    delay: float
    index: int
    size: int
    keep: float
    result: bytes
    rest: bytes


@dataclass(frozen=True, slots=True)
class BeginWorkflow:
    """A workflow begins: `plan` (JSON) names its `total` steps. It is kept for `ttl` seconds. The first effect."""

    effect: ClassVar[str] = "begin_workflow"
    workflow_id: str
    plan: bytes
    total: int
    ttl: float


@dataclass(frozen=True, slots=True)
class NoteStep:
    """A step of a workflow has ended. If the workflow was cancelled, the effects after this one send no step.

    What is known of the workflow is kept for `ttl` seconds more. The first effect.
    """

    effect: ClassVar[str] = "note_step"
    place: StepPlace
    state: StepState
    ttl: float


SideEffect = BeginWorkflow | NoteStep | KeepResult | FreeKey | SendTask | DelayTask | JoinGroup


def has_side_effects(delivery: Delivery, *, done: bool) -> bool:
    """Has the end of this task side effects beside its result? `done` says that it succeeded.

    If a deduplication key is held until its TTL, the success of the task does not free it; any other end does.
    """
    if delivery.only_basic_fields:
        return False
    fields = delivery.fields
    return (DEDUP_UNTIL if done else DEDUP) in fields or THEN in fields or WORKFLOW in fields


def effects_of_start(delivery: Delivery) -> list[SideEffect]:
    """Return the side effects of the start of a task."""
    if delivery.dedup_until != "started" or (key := delivery.dedup) is None:
        return []
    return [FreeKey(key, delivery.task_id)]


def effects_of_end(
    delivery: Delivery, *, payload: bytes, keep: float | None, done: bool = False, now: float = 0.0,
    group: str | None = None,
) -> list[SideEffect]:  # fmt: skip
    """Return the side effects of the end of a task; `done` says that it succeeded.

    `payload` is its result (JSON) as waiters get it. `keep` (s) is how long that is kept, None for not at all. `now` is
    Unix seconds, `group` the consumer group in which it succeeded.
    """
    found: list[SideEffect] = []
    try:
        if keep:
            found.append(KeepResult(delivery.task_id, keep, payload))
        if (key := delivery.dedup) is not None and (not done or DEDUP_UNTIL in delivery.fields):
            found.append(FreeKey(key, delivery.task_id))
        if (stages := delivery.then) is not None and done:
            found += effects_of_sending(
                stages, payload[len(_OK) : -1] if payload.startswith(_OK) else b"", now=now, group=group
            )
        elif stages is not None:
            why = _upstream_failure(delivery, payload)
            found += (KeepResult(task_id, ttl, why) for task_id, ttl in wanted_results(stages))
    except UndecodableError:  # it is dead-lettered as undecodable: a field that cannot be read has no side effects
        pass
    except Exception:  # a mistake of ours: it must not keep a task from becoming a dead letter
        if done:
            raise
    if (place := delivery.workflow) is not None:
        found.insert(0, NoteStep(place, _state_of(payload, done=done), RECORD_KEPT + longest_wait_of(found)))
    return found


def effects_of_sending(
    stages: Sequence[Stage], result: bytes = b"", *, now: float, group: str | None = None
) -> list[SendTask | DelayTask | JoinGroup]:
    """Return the side effects that send the next stages of a workflow. `result` is JSON, `now` Unix seconds."""
    found: list[SendTask | DelayTask | JoinGroup] = []
    for one in next_messages(stages, result, now=now, group=group):
        match one:
            case NextMessage(stream, task_id, fields, delay):
                found.append(DelayTask(stream, task_id, fields, delay) if delay else SendTask(stream, fields))
            case JoinMessage(index, size, keep, part, message, rest):
                found.append(JoinGroup(
                    message.stream, message.task_id, message.fields, message.delay, index, size, keep, part, rest
                ))  # fmt: skip
            case _:
                assert_never(one)
    return found


def longest_wait_of(effects: Sequence[SideEffect]) -> float:
    """Return after how many seconds, at most, the steps begin that these effects send."""
    waits = [one.delay for one in effects if isinstance(one, DelayTask | JoinGroup)]
    return max([*waits, *(one.delay + one.keep for one in effects if isinstance(one, JoinGroup))], default=0.0)


def upstream_mark(task_id: str) -> bytes:
    """Return the part of the results of later steps that says that this task failed."""
    return dumps(f" {task_id}{_FAILED}")[1:-1]


def _state_of(payload: bytes, *, done: bool) -> StepState:
    if done:
        return StepState.DONE
    return StepState.CANCELLED if orjson.loads(payload)["reason"] == "cancelled" else StepState.DEAD


def _upstream_failure(delivery: Delivery, payload: bytes) -> bytes:
    """Return the result that waiters for a later step get, after a step before it failed."""
    failure = orjson.loads(payload)
    error = f"{delivery.task} {delivery.task_id}{_FAILED}{failure['reason']}): {failure['error']}"
    return dumps({**failure, "error": error, "reason": "upstream"})
