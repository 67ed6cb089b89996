"""Workflows as they are written down: chains of calls, groups of calls. Values; nothing here sends.

`fetch.call(url).then(parse).then(store, table="x")` runs one task after the other, each with the result of the one
before as its first argument. `group(a.call(1), b.call(2)).then(total)` runs tasks side by side, and then one with the
list of their results. `RedisBroker.start` sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from streamq.errors import ConfigurationError, check_number

GROUP_KEPT = 7 * 24 * 3600.0  # seconds for which results of a group's members are kept, from the last one on

P = ParamSpec("P")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


class Flow(Generic[R_co]):
    """What a broker can start: a call, a chain, a group. `R` is what its end returns."""

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
        """Return this with one more step, sent in the same atomic step in which the one before it is acknowledged.

        A task, or the name of one, is given the result of the step before as its first argument, and `args` and
        `kwargs` after it; behind a group that is the list of its members' results. A call (`task.call(...)`) is
        sent as it is and given no result. A group is sent to its members, each by the same rule.

        Raises ConfigurationError where a group is followed by a group.
        """
        return Chain((*_parts(self), *_parts(_part(following, args, kwargs))))


class ByName(Protocol):
    """A task whose code is elsewhere. All others are seen from here as the functions that they are."""

    by_name: ClassVar[bool]


@dataclass(frozen=True, slots=True)
class Step(Flow[R_co]):
    """A task that is given the result of the step before as its first argument, and these after it. Made by `step`."""

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group(Flow[R_co]):
    """Flows that run side by side. Made by `group`."""

    members: tuple[Flow[Any], ...]
    keep: float = GROUP_KEPT


@dataclass(frozen=True, slots=True)
class Chain(Flow[R_co]):
    """Steps and groups that run one after the other. Made by `then`."""

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
    """Return a step that is given the result of the one before it, and these arguments after it.

    It is what `then` makes of a task, for where there is no `then`: members of a group in the middle of a chain.
    """
    return Step(task, args, kwargs)


def group(*members: Flow[S], keep: float = GROUP_KEPT) -> Group[list[S]]:
    """Return flows as one that runs them side by side: calls, chains, and in the middle of a chain `step(task)`.

    What follows by `then` is sent once all of them have succeeded, with the list of their results in this order.
    Results are kept for `keep` seconds from the last one on: a member that comes later than that finds them gone.

    Raises ConfigurationError for a group of none, and for a member that ends in a group.
    """
    if not members:
        raise ConfigurationError("a group of none: give it a member, or send what follows it with [] yourself")
    check_number("keep", keep, 1.0)
    for member in members:
        if not isinstance(member, Flow):
            raise ConfigurationError(
                f"{member!r} cannot be a member of a group: give a call (task.call(...)), a chain, or step(task)"
            )
        if isinstance(_parts(member)[-1], Group):
            raise ConfigurationError("a member of a group cannot end in a group: put a step after the inner group")
    return Group(members, keep)


def _part(following: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow[Any]:
    if not isinstance(following, Flow):
        return Step(following, args, kwargs)
    if args or kwargs:
        raise ConfigurationError(f"{following!r} is complete: give its arguments where it is made")
    return following


def _parts(flow: Flow[Any]) -> tuple[Flow[Any], ...]:
    return flow.parts if isinstance(flow, Chain) else (flow,)
