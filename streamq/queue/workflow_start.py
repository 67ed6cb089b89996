"""Starting a workflow: from what was written down to the messages of its first steps, which carry all others.

`Plan` numbers the calls of a flow and keeps its shape, so that the calls may pass their middleware and come back
changed. No I/O but that of the handles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, assert_never, cast

import anyio

from streamq.client import Command
from streamq.errors import ConfigurationError, PayloadTooLargeError, ResultTimeoutError
from streamq.queue.results import Handle
from streamq.queue.sending import ACCEPTED_KEPT, Sender
from streamq.queue.store import Store
from streamq.tasks.task import Call, Durable, Options
from streamq.wire.flow import Chain, Flow, Group, Step
from streamq.wire.message import as_text
from streamq.wire.next_step import Fan, Next, Stage
from streamq.wire.side_effects import Consequence, sent

R_co = TypeVar("R_co", covariant=True)
_MOST_STEPS = 10_000
_LONGEST_ID = 190  # characters; the ids of its steps have some more


@dataclass(frozen=True, slots=True)
class _One:
    """The place of a step among the calls; `fed` says that it is given the result before it."""

    place: int
    fed: bool


@dataclass(frozen=True, slots=True)
class _Side:
    """A group: the shapes of its members."""

    members: tuple[tuple[_One | _Side, ...], ...]
    keep: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A workflow that is ready to go. `steps` are in the order they were written in."""

    command: Command
    steps: Sequence[tuple[Call[Any], int, str]]  # call, tier, task id
    durable: Sequence[Durable]


class Plan:
    """A flow as a list of calls, and its shape.

    `called` makes a call of a task, or a name, and its arguments. Raises ConfigurationError for what cannot be
    started.
    """

    def __init__(self, flow: Flow[Any], called: Callable[[Any, Sequence[Any], Mapping[str, Any]], Call[Any]]) -> None:
        self.calls: list[Call[Any]] = []
        self._called = called
        if not isinstance(flow, Flow):
            raise ConfigurationError(f"{flow!r} cannot be started: give a call (task.call(...)), a chain or a group")
        self._shape = self._shaped(flow, first=True)
        if len(self.calls) > _MOST_STEPS:
            raise ConfigurationError(f"a workflow of {len(self.calls)} steps: {_MOST_STEPS} is the most")

    def __repr__(self) -> str:
        return f"<Plan of {len(self.calls)} steps>"

    @property
    def ends(self) -> tuple[int, ...] | int:
        """The place of the last step, or the places of the last steps of the members of a group."""
        last = self._shape[-1]
        return last.place if isinstance(last, _One) else tuple(_end(member) for member in last.members)

    def ready(
        self, sender: Sender, store: Store, calls: Sequence[Call[Any]], workflow_id: str, *, guarded: bool
    ) -> Ready:
        """Return the command that starts it. `calls` stand in for those of the plan; `guarded`: once for this id.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        if len(calls) != len(self.calls):
            raise ConfigurationError(
                f"{len(self.calls) - len(calls)} of {len(self.calls)} steps were not sent on by their middleware: "
                "a workflow is sent as a whole"
            )
        _check_id(workflow_id)
        guards = [store.keys.accepted(workflow_id)] if guarded else []
        fed = {one.place: one.fed for one in _ones(self._shape)}
        steps: list[tuple[Call[Any], int, str]] = []
        nexts: list[Next] = []
        for place, call in enumerate(calls):
            given = call.task.sending.task_id
            if given is not None:
                guards.append(store.keys.accepted(given))
            task_id = given if given is not None else f"{workflow_id}.{place + 1}"
            tier, following = sender.step(call, task_id, fed=fed[place])
            steps.append((call, tier, task_id))
            nexts.append(following)
        if len({task_id for _, _, task_id in steps}) < len(steps):
            raise ConfigurationError("two steps of a workflow have the same task_id: give each its own, or none")
        also = sent(_stages(self._shape, nexts), now=store.clock.now())
        _check_size(also, sender.limit)
        durable: list[Durable] = [wish for call in calls if (wish := call.task.sending.durable) is not None]
        return Ready(store.start(workflow_id, also, guards, accepted=ACCEPTED_KEPT), steps, durable)

    def _shaped(self, flow: Flow[Any], *, first: bool) -> tuple[_One | _Side, ...]:
        match flow:
            case Chain(parts):
                found: list[_One | _Side] = []
                for part in parts:
                    found += self._shaped(part, first=first and not found)
                return tuple(found)
            case Group(members, keep):
                return (_Side(tuple(self._shaped(member, first=first) for member in members), keep),)
            case Step(target, args, kwargs):
                call = self._called(target, args, kwargs)
                if first:
                    raise ConfigurationError(
                        f"the step {call.task.name!r} is to be given the result of the one before it, and there is "
                        "none: give a call (task.call(...))"
                    )
            case Call():
                call = flow
            case _:
                raise ConfigurationError(f"{flow!r} cannot be started: give a call, a chain or a group")
        self.calls.append(call)
        return (_One(len(self.calls) - 1, isinstance(flow, Step)),)


@dataclass(frozen=True, slots=True)
class Workflow(Generic[R_co]):
    """A workflow that was started.

    `steps` are the handles of all its steps, in the order they were written in; a step that was not sent yet has the
    status UNKNOWN. `fresh` is False if a workflow of this id, or a task of one of its ids, was there before; it is then
    the handle of that one.
    """

    workflow_id: str
    fresh: bool
    steps: tuple[Handle[Any], ...]
    _ends: tuple[int, ...] | int = field(repr=False)

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109 - as that of a handle
        """Wait for the end and return what the last step returned; of a group the list of what its members did.

        `timeout` is in seconds, None waits for ever. Raises ResultTimeoutError after it, TaskFailedError once a
        step has failed without which the end cannot come, ResultNotKeptError if the last step keeps no result.
        """
        if isinstance(self._ends, int):
            return cast("R_co", await self.steps[self._ends].result(timeout))
        found: dict[int, Any] = {}
        failed: list[Exception] = []

        async def one(place: int) -> None:
            try:
                found[place] = await self.steps[place].result()
            except Exception as error:  # noqa: BLE001 - raised below, and not as one of a group
                failed.append(error)
                group.cancel_scope.cancel()

        with anyio.move_on_after(timeout):
            async with anyio.create_task_group() as group:
                for place in self._ends:
                    group.start_soon(one, place)
        if failed:
            raise failed[0]
        if len(found) < len(self._ends):
            raise ResultTimeoutError(self.workflow_id, timeout or 0.0)
        return cast("R_co", [found[place] for place in self._ends])

    async def cancel(self) -> bool:
        """Withdraw what waits now, and tell what runs now to stop: what would come after it is not sent.

        Returns whether there was any such step. A step that succeeds in this instant sends the next one all the same.
        """
        return any([await handle.cancel() for handle in self.steps])


def _stages(shape: Sequence[_One | _Side], nexts: Sequence[Next]) -> list[Stage]:
    found: list[Stage] = []
    for part in shape:
        match part:
            case _One(place):
                found.append(nexts[place])
            case _Side(members, keep):
                found.append(Fan(tuple(tuple(_stages(member, nexts)) for member in members), keep))
            case _:
                assert_never(part)
    return found


def _ones(shape: Sequence[_One | _Side]) -> list[_One]:
    found: list[_One] = []
    for part in shape:
        if isinstance(part, _One):
            found.append(part)
        else:
            for member in part.members:
                found += _ones(member)
    return found


def _end(member: Sequence[_One | _Side]) -> int:
    return cast("_One", member[-1]).place  # `group` refuses members that end in a group


def _check_id(workflow_id: str) -> None:
    Options(task_id=workflow_id)  # it must be usable as one: the ids of the steps are made of it
    if len(workflow_id) > _LONGEST_ID:
        raise ConfigurationError(f"workflow_id={workflow_id!r} cannot be used: give at most {_LONGEST_ID} characters")


def _check_size(also: Sequence[Consequence], limit: int) -> None:
    """Raise PayloadTooLargeError if a message is: the first of a chain carries all that come after it."""
    for one in also:
        flat = as_text(getattr(one, "fields", ()))
        size = sum(len(part.encode()) for part in flat)
        if size > limit:
            raise PayloadTooLargeError(dict(zip(flat[::2], flat[1::2], strict=True))["task"], size, limit)
