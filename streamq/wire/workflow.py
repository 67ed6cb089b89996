"""Workflows as a program writes them: chains of calls, and groups of calls. Values only; nothing here sends.

`fetch.call(url).then(parse).then(store, table="x")` runs one task after the other. The result of each is the first
argument of the next. `group(a.call(1), b.call(2)).then(total)` runs tasks side by side, and then `total` with the list
of their results. `RedisBroker.start` sends a workflow, `queue/workflow_start.py` builds its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.wire import bounds

GROUP_KEPT = 7 * 24 * 3600.0  # seconds that the results of a group's members are kept, from the latest one on

P = ParamSpec("P")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


class Flow(Generic[R_co]):
    """A workflow: a call, a chain or a group. `R_co` is what its last step returns."""

    __slots__ = ()

    @overload
    def then(self, following: Flow[S], /) -> Chain[S]: ...
    @overload
    def then(
        self, following: Callable[Concatenate[R_co, P], Coroutine[Any, Any, S]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Chain[S]: ...
    @overload
    def then(self, following: Callable[Concatenate[R_co, P], S], /, *args: P.args, **kwargs: P.kwargs) -> Chain[S]: ...
    @overload
    def then(self, following: str | ByName, /, *args: Any, **kwargs: Any) -> Chain[Any]: ...
    def then(self, following: Any, /, *args: Any, **kwargs: Any) -> Chain[Any]:
        """Return this workflow with one more step. It is sent in the atomic step that acknowledges the step before it.

        - A task, or the name of one: its first argument is the result of the step before, then follow `args` and
          `kwargs`. After a group the result is the list of its members' results.
        - A call (`task.call(...)`): it is sent as it is, without a result.
        - A group: the same rules apply to each of its members.

        Raises ConfigurationError if a group follows a group, and for what is no task, name or flow.
        """
        return Chain((*_parts(self), *_parts(_part(following, args, kwargs))))


class ByName(Protocol):
    """A task whose code is elsewhere (`TaskRef`). For type checkers all other tasks are functions."""

    by_name: ClassVar[bool]


@dataclass(frozen=True, slots=True)
class Step(Flow[R_co]):
    """A task whose first argument is the result of the step before; `args` and `kwargs` follow. `step` makes it."""

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group(Flow[R_co]):
    """Flows that run side by side. `group` makes it. `keep` is in seconds."""

    members: tuple[Flow[Any], ...]
    keep: float = GROUP_KEPT


@dataclass(frozen=True, slots=True)
class Chain(Flow[R_co]):
    """Steps and groups that run one after the other. `then` makes it."""

    parts: tuple[Flow[Any], ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.parts, self.parts[1:], strict=False):
            if isinstance(before, Group) and isinstance(after, Group):
                raise ConfigurationError("a group cannot follow a group: put a step between, which gets the results")


@overload
def step(
    task: Callable[Concatenate[Any, P], Coroutine[Any, Any, S]], /, *args: P.args, **kwargs: P.kwargs
) -> Step[S]: ...
@overload
def step(task: Callable[Concatenate[Any, P], S], /, *args: P.args, **kwargs: P.kwargs) -> Step[S]: ...
@overload
def step(task: str | ByName, /, *args: Any, **kwargs: Any) -> Step[Any]: ...
def step(task: Any, /, *args: Any, **kwargs: Any) -> Step[Any]:
    """Return a step whose first argument is the result of the step before it. These arguments follow.

    `then` makes such a step of a task. Use `step` where there is no `then`: for a member of a group in a chain.

    Raises ConfigurationError for what is no task and no name.
    """
    return Step(_task(task, "step"), args, kwargs)


def group(*members: Flow[S], keep: float = GROUP_KEPT) -> Group[list[S]]:
    """Return a flow that runs these members side by side: calls, chains, and in the middle of a chain `step(task)`.

    The step that follows by `then` is sent when all members have succeeded, with the list of their results in the order
    of the members. Results are kept for `keep` seconds from the latest one on. If the last member ends later than that,
    the results of the others are gone, and the next step is never sent.

    Raises ConfigurationError for a group without members, and for a member that ends with a group.
    """
    if not members:
        raise ConfigurationError("a group without members: give it one, or send the step after it with [] yourself")
    keep = bounds.KEEP.check(keep)
    for member in members:
        if not isinstance(member, Flow):
            task = f"{member.name}" if _is_task(member) else "task"
            raise ConfigurationError(
                f"{_named(member)} cannot be a member of a group: give a call ({task}.call(...)), a chain, or, after "
                f"another step, step({task})"
            )
        if isinstance(_parts(member)[-1], Group):
            raise ConfigurationError("a member of a group cannot end with a group: put a step after the inner group")
    return Group(members, keep)


def check_nesting(depth: int, error: type[Exception] = ConfigurationError, remedy: str = "") -> None:
    """Raise `error` if so many groups must not be in each other. `remedy` is what to do about it."""
    if depth not in bounds.DEPTH:
        raise error(f"more than {bounds.DEPTH.highest} groups in each other{remedy}")


def _part(following: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow[Any]:
    if not isinstance(following, Flow):
        return Step(_task(following, "then"), args, kwargs)
    if args or kwargs:
        raise ConfigurationError(f"{_named(following)} is complete: give its arguments where it is made")
    return following


def _task(given: Any, where: str) -> Any:
    """Return what a step is made of: a task, or the name of one. Raises ConfigurationError for anything else."""
    if isinstance(given, str) or _is_task(given):
        return given
    if isinstance(given, Flow):
        raise ConfigurationError(f"{_named(given)} cannot be in {where}(...): give it as it is, without {where}")
    owner: Any = getattr(given, "__self__", None)
    if _is_task(owner):
        raise ConfigurationError(
            f"a method of {_named(owner)} cannot be a step: give {where}({owner.name}), which takes the result of the "
            f"step before, or {owner.name}.call(...), which does not"
        )
    raise ConfigurationError(
        f"{_named(given)} is no task, and cannot be a step: decorate a function with @task, or give the name of a task"
    )


def _is_task(given: Any) -> bool:
    return hasattr(given, "send_options") and not isinstance(given, type)


def _named(given: Any) -> str:
    """Return the words for a value in an error: those of a task, or of a flow, are few."""
    match given:
        case Chain() | Group() | Step():
            return f"a {type(given).__name__.lower()}"
        case Flow():
            return f"the call of {given.task.name!r}"  # type: ignore[attr-defined]  # `Call`, of a folder above
        case _:
            return f"the task {given.name!r}" if _is_task(given) else repr_of(given)


def _parts(flow: Flow[Any]) -> tuple[Flow[Any], ...]:
    return flow.parts if isinstance(flow, Chain) else (flow,)
