"""Starting a workflow: from a flow to the messages of its first steps, which carry all later steps.

`WorkflowSteps` numbers the steps of a flow and keeps their order. So each call can go through its middleware, which may
change it, and is put back in its place. No I/O except that of the handles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, assert_never, cast

from streamq.client import Command
from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ConfigurationError, PayloadTooLargeError, ResultTimeoutError
from streamq.queue.gather import gather
from streamq.queue.results import Handle
from streamq.queue.sending import ACCEPTED_KEPT, MessageBuilder
from streamq.queue.store import Store
from streamq.queue.workflow_handle import WorkflowHandle
from streamq.tasks.options import Durable
from streamq.tasks.task import Call
from streamq.wire import bounds
from streamq.wire.message import as_text
from streamq.wire.names import check_name
from streamq.wire.side_effects import BeginWorkflow, SideEffect, effects_of_sending, longest_wait_of
from streamq.wire.workflow import Chain, Flow, Group, Step, check_nesting
from streamq.wire.workflow_bounds import workflow_bytes
from streamq.wire.workflow_record import RECORD_KEPT, PlannedStep, StepPlace, WorkflowState, encode_plan
from streamq.wire.workflow_steps import NextGroup, NextStep, Stage

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class _StepPlace:
    """A step: the index of its call. `takes_result`: its first argument is the result of the step before it."""

    index: int
    takes_result: bool


@dataclass(frozen=True, slots=True)
class _GroupPlaces:
    """A group: the steps of each member, in their order. `keep` (s) is how long it keeps the results of members."""

    members: tuple[tuple[_StepPlace | _GroupPlaces, ...], ...]
    keep: float


@dataclass(frozen=True, slots=True)
class PreparedWorkflow:
    """A workflow that is ready to be sent: the command, and what the handles of its steps need.

    `steps` are (call, tier, task id), in the order of the flow. `durable` is what the steps ask for.
    """

    command: Command
    steps: Sequence[tuple[Call[Any], int, str]]
    durable: Sequence[Durable]


class WorkflowSteps:
    """The steps of a flow: `calls` are numbered in the order of the flow.

    `make_call` makes the call of a task (or a name) and its arguments. Raises ConfigurationError for a flow that cannot
    be started.
    """

    def __init__(
        self, flow: Flow[Any], make_call: Callable[[Any, Sequence[Any], Mapping[str, Any]], Call[Any]]
    ) -> None:
        self.calls: list[Call[Any]] = []
        self._make_call = make_call
        if not isinstance(flow, Flow):
            raise ConfigurationError(
                f"{repr_of(flow)} cannot be started: give a call (task.call(...)), a chain or a group"
            )
        self._places = self._number(flow, 0, first=True)
        if len(self.calls) not in bounds.MEMBERS:
            raise ConfigurationError(f"a workflow of {len(self.calls)} steps: {bounds.MEMBERS.highest:,} is the most")

    def __repr__(self) -> str:
        return f"<WorkflowSteps: {len(self.calls)}>"

    @property
    def last(self) -> tuple[int, ...] | int:
        """The index of the last step. If the flow ends with a group, the indexes of the last step of each member."""
        place = self._places[-1]
        return place.index if isinstance(place, _StepPlace) else tuple(_last_step(member) for member in place.members)

    def prepare(
        self, builder: MessageBuilder, store: Store, calls: Sequence[Call[Any]], workflow_id: str, *, guarded: bool
    ) -> PreparedWorkflow:
        """Return the workflow, ready to be sent. `calls` are those of `self.calls` after their middleware.

        `guarded`: a workflow of this id is started once.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        if len(calls) != len(self.calls):
            raise ConfigurationError(
                f"{len(self.calls) - len(calls)} of {len(self.calls)} steps were not passed on by their middleware: "
                "a workflow is sent as a whole"
            )
        check_name("workflow_id", workflow_id)
        guards = [store.keys.accepted_workflow(workflow_id)] if guarded else []
        takes_result = {step.index: step.takes_result for step in _all_steps(self._places)}
        steps: list[tuple[Call[Any], int, str]] = []
        messages: list[NextStep] = []
        own_ids: list[str] = []
        for index, call in enumerate(calls):
            own = call.task.send_options.task_id
            if own is not None:
                guards.append(store.keys.accepted(own))
            task_id = own if own is not None else f"{workflow_id}.{index + 1}"
            sent, tier, message = builder.workflow_step(call, task_id, takes_result=takes_result[index])
            steps.append((sent, tier, task_id))
            if guarded or own is not None:
                own_ids.append(task_id)
            place = StepPlace(workflow_id, index + 1)
            messages.append(replace(message, fields=(*message.fields, "workflow", str(place))))
        if len({task_id for _, _, task_id in steps}) < len(steps):
            raise ConfigurationError("two steps of a workflow have the same task_id: give each its own, or none")
        stages = _stages(self._places, messages)
        if (size := workflow_bytes(stages)) not in bounds.WORKFLOW_BYTES:
            raise PayloadTooLargeError(calls[0].task.name, size, int(bounds.WORKFLOW_BYTES.highest))
        effects = effects_of_sending(stages, now=store.clock.now_to_send())
        _check_size(effects, builder.max_payload)
        plan = encode_plan(PlannedStep(one.task_id, one.task, one.stream, one.keep or 0.0) for one in messages)
        begin = BeginWorkflow(workflow_id, plan, len(messages), RECORD_KEPT + longest_wait_of(effects))
        durable: list[Durable] = [wanted for call in calls if (wanted := call.task.send_options.durable) is not None]
        return PreparedWorkflow(
            store.enqueue_commands.start_workflow(
                workflow_id, [begin, *effects], guards, accepted=ACCEPTED_KEPT, own_ids=own_ids
            ), steps, durable,
        )  # fmt: skip

    def _number(self, flow: Flow[Any], depth: int, *, first: bool) -> tuple[_StepPlace | _GroupPlaces, ...]:
        match flow:
            case Chain(parts):
                found: list[_StepPlace | _GroupPlaces] = []
                for part in parts:
                    found += self._number(part, depth, first=first and not found)
                return tuple(found)
            case Group(members, keep):
                check_nesting(
                    depth + 1, remedy=": start the inner ones as a workflow of their own, in a step's handler"
                )
                numbered = tuple(self._number(member, depth + 1, first=first) for member in members)
                return (_GroupPlaces(numbered, keep),)
            case Step(target, args, kwargs):
                call = self._make_call(target, args, kwargs)
                if first:
                    raise ConfigurationError(
                        f"the step {call.task.name!r} takes the result of the step before it, and there is none: "
                        "begin with a call (task.call(...))"
                    )
            case Call():
                call = flow
            case _:
                raise ConfigurationError(f"{repr_of(flow)} cannot be started: give a call, a chain or a group")
        self.calls.append(call)
        return (_StepPlace(len(self.calls) - 1, isinstance(flow, Step)),)


@dataclass(frozen=True, slots=True)
class Workflow(WorkflowHandle, Generic[R_co]):
    """A workflow that was started.

    `steps` are the handles of all its steps, in the order of the flow. A step that was not sent yet has the status
    UNKNOWN. `fresh` is False if a workflow of this id, or a task with one of its task ids, was there before. Nothing
    was sent then, and this is the handle of the earlier workflow.
    """

    fresh: bool
    steps: tuple[Handle[Any], ...]
    _last: tuple[int, ...] | int = field(repr=False)

    async def result(self, timeout: float | timedelta | None = None) -> R_co:  # noqa: ASYNC109 - as that of a handle
        """Wait for the end, and return what the last step returned. For a group: the list of what its members returned.

        `timeout` is in seconds, None waits for ever. Raises ResultTimeoutError after the timeout, TaskFailedError if a
        step failed that the end needs, ResultNotKeptError if the last step keeps no result.
        """
        if isinstance(self._last, int):
            return cast("R_co", await self.steps[self._last].result(timeout))
        try:
            return cast("R_co", [*await gather(*[self.steps[index] for index in self._last], timeout=timeout)])
        except ResultTimeoutError as error:
            raise ResultTimeoutError(self.workflow_id, error.timeout) from None

    async def cancel(self) -> bool:
        """Cancel the whole workflow: see `WorkflowHandle.cancel`."""
        cancelled = await WorkflowHandle.cancel(self)
        if cancelled or (await self.status()).state is not WorkflowState.UNKNOWN:
            return cancelled
        # Nothing is known of it any more: its steps are, each by its handle.
        return any([await handle.cancel() for handle in self.steps])


name_remedies(Workflow, "workflow")


def _stages(places: Sequence[_StepPlace | _GroupPlaces], messages: Sequence[NextStep]) -> list[Stage]:
    found: list[Stage] = []
    for place in places:
        match place:
            case _StepPlace(index):
                found.append(messages[index])
            case _GroupPlaces(members, keep):
                found.append(NextGroup(tuple(tuple(_stages(member, messages)) for member in members), keep))
            case _:
                assert_never(place)
    return found


def _all_steps(places: Sequence[_StepPlace | _GroupPlaces]) -> list[_StepPlace]:
    found: list[_StepPlace] = []
    for place in places:
        if isinstance(place, _StepPlace):
            found.append(place)
        else:
            for member in place.members:
                found += _all_steps(member)
    return found


def _last_step(member: Sequence[_StepPlace | _GroupPlaces]) -> int:
    return cast("_StepPlace", member[-1]).index  # `group` refuses members that end with a group


def _check_size(effects: Sequence[SideEffect], limit: int) -> None:
    """Raise PayloadTooLargeError if a message is too large: the first message of a chain carries all later ones."""
    for effect in effects:
        flat = as_text(getattr(effect, "fields", ()))
        size = sum(len(part.encode()) for part in flat)
        if size > limit:
            raise PayloadTooLargeError(dict(zip(flat[::2], flat[1::2], strict=True))["task"], size, limit)
