"""What is known of a workflow as a whole: its steps and how far each is, as one hash in Redis has it. Pure.

The hash is made as the workflow starts. Its `plan` names the steps, `<number>:<group>` is the state of one of them in a
consumer group; `<number>` alone that of a first step, in all groups. A step that was not sent has none. The atomic step
that ends a task, or sends it, writes its state. The field `workflow` of a message says which step it is, and of what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import orjson

from streamq.errors import BrokerError
from streamq.wire.stored_numbers import stored_count

RECORD_KEPT: Final = 7 * 24 * 3600.0  # seconds that a workflow is known after the last change of a step
KEPT_AFTER_END: Final = 3600.0  # seconds that it is known after all of its steps have succeeded
WORKFLOW: Final = b"workflow"  # the field of a message
_MOST_DIGITS: Final = 5  # of the number of a step
_SENT: Final = "sent "
_ENTRY_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)


class StepState(StrEnum):
    """How far a step of a workflow is."""

    WAITING = "waiting"  # was not sent: steps before it have not succeeded
    SENT = "sent"  # waits in its stream or for its time, or runs: the status of its task says which
    DONE = "done"
    DEAD = "dead"  # a dead letter: a replay goes on with the workflow
    CANCELLED = "cancelled"


class WorkflowState(StrEnum):
    """How far a workflow is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"  # all steps are done
    FAILED = "failed"  # a step is dead; others may run on
    CANCELLED = "cancelled"  # it was, or a step of it; steps that ran may not have stopped yet
    UNKNOWN = "unknown"  # was never started, or nothing is known of it any more


@dataclass(frozen=True, slots=True)
class StepStatus:
    """How far one step of a workflow is. After a replay `task_id` is that of the replay."""

    task_id: str
    task_name: str
    state: StepState


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """How far a workflow is. `steps` are all its steps, in the order of the flow; none if it is not known."""

    workflow_id: str
    state: WorkflowState
    steps: tuple[StepStatus, ...] = ()

    @property
    def counts(self) -> dict[StepState, int]:
        """How many steps are in each state."""
        found = Counter(step.state for step in self.steps)
        return {state: found[state] for state in StepState}

    @property
    def failed(self) -> tuple[StepStatus, ...]:
        """The steps that are dead letters. Replay them, and the workflow goes on."""
        return tuple(step for step in self.steps if step.state is StepState.DEAD)


class StepPlace(NamedTuple):
    """A step of a workflow, by its number from 1 on. Its text is the field `workflow` of its message."""

    workflow_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.workflow_id}.{self.number}"

    def field(self, group: str) -> str:
        """Return the field of its state in this consumer group."""
        return f"{self.number}:{group}"

    @classmethod
    def parse(cls, raw: bytes) -> StepPlace | None:
        """Return the place that a field names, None if it names none."""
        workflow_id, _, number = raw.decode(errors="replace").rpartition(".")
        if not workflow_id or not number.isascii() or not number.isdigit() or len(number) > _MOST_DIGITS:
            return None
        return cls(workflow_id, int(number))


class PlannedStep(NamedTuple):
    """A step as the plan has it. `keep` is for how many seconds its result is kept, 0 for not at all."""

    task_id: str
    task: str
    stream: str
    keep: float


@dataclass(frozen=True, slots=True)
class SentStep:
    """A step that was sent and has not ended. `entry_id` was its first entry.

    It is empty if the step was sent with a delay, at `since` (Unix ms, the server's).
    """

    step: PlannedStep
    task_id: str
    entry_id: str
    since: int


def encode_plan(steps: Iterable[PlannedStep]) -> bytes:
    """Return the steps of a workflow as the field `plan`."""
    return orjson.dumps([*map(list, steps)])


def decode_plan(raw: bytes) -> list[PlannedStep]:
    """Return the steps of a workflow. Raises BrokerError if this is no plan."""
    try:
        return [
            PlannedStep(str(task_id), str(task), str(stream), float(keep))
            for task_id, task, stream, keep in orjson.loads(raw)
        ]
    except (ValueError, TypeError) as error:
        raise BrokerError(f"the field 'plan' of a workflow is no list of steps: {raw[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """What the hash of a workflow says, for one consumer group."""

    plan: tuple[PlannedStep, ...]
    fields: Mapping[str, str]
    group: str

    @classmethod
    def read(cls, flat: list[bytes], group: str) -> WorkflowRecord | None:
        """Return what the fields of the hash say, None if there is no such workflow. Raises BrokerError."""
        texts = [part.decode(errors="replace") for part in flat]
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        return cls(tuple(decode_plan(fields["plan"].encode())), fields, group) if "plan" in fields else None

    def status(self, workflow_id: str) -> WorkflowStatus:
        """Return how far the workflow is."""
        steps = tuple(self._step(number, step) for number, step in enumerate(self.plan, 1))
        states = {step.state for step in steps}
        if states == {StepState.DONE}:
            state = WorkflowState.SUCCEEDED
        elif "cancelled" in self.fields:
            state = WorkflowState.CANCELLED
        elif StepState.DEAD in states:
            state = WorkflowState.FAILED
        else:
            state = WorkflowState.CANCELLED if StepState.CANCELLED in states else WorkflowState.RUNNING
        return WorkflowStatus(workflow_id, state, steps)

    def sent(self) -> list[SentStep]:
        """Return the steps that were sent and have not ended."""
        found: list[SentStep] = []
        for number, step in enumerate(self.plan, 1):
            _, sent, rest = self._state(number).partition(_SENT)
            if sent:
                where, _, task_id = rest.partition(" ")
                found.append(_sent_step(step, where, task_id or step.task_id))
        return found

    def _step(self, number: int, step: PlannedStep) -> StepStatus:
        word, _, rest = self._state(number).partition(" ")
        replayed = rest.partition(" ")[2] if word == StepState.SENT else ""
        state = StepState(word) if word in set(StepState) else StepState.WAITING
        return StepStatus(replayed or step.task_id, step.task, state)

    def _state(self, number: int) -> str:
        return self.fields.get(f"{number}:{self.group}") or self.fields.get(str(number)) or ""


def _sent_step(step: PlannedStep, where: str, task_id: str) -> SentStep:
    """Return where a step was sent to: `<entry id>`, or `@<Unix ms>` with a delay. Of other texts nothing is known."""
    if _ENTRY_ID.fullmatch(where):
        return SentStep(step, task_id, where, 0)
    return SentStep(step, task_id, "", stored_count(where.removeprefix("@")) or 0)
