"""How a workflow goes on: the field `then` of a message, inwards and outwards. Pure; knows no key.

The field holds a flat list of stages, the next one first. Each message that is sent takes the rest of the list
along. Flat, because a message within a message within a message would double its backslashes with
every step; so each lies in the list as the flat fields that it will have, and is text in JSON once.

A result goes from one step to the next as the bytes that it was encoded to, and is never decoded on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streamq.errors import EncodingError, PayloadTooLargeError, UndecodableError
from streamq.wire.flow import GROUP_KEPT
from streamq.wire.message import Default, Field, dumps, milliseconds, shown

_NOTHING = b"null"


@dataclass(frozen=True, slots=True)
class Next:
    """A step: a message for `stream`. `fed` says that the result before it becomes its first argument.

    `delay`, or `at` (Unix seconds), and `expires` count from when it is sent; `keep` is for how long its result is
    wanted. Seconds; None for not at all.
    """

    stream: str
    fields: tuple[str, ...]
    fed: bool = False
    delay: float | None = None
    at: float | None = None
    expires: float | None = None
    keep: float | None = None

    @property
    def task_id(self) -> str:
        """The id of the task that it becomes."""
        return self._field("id")

    @property
    def task(self) -> str:
        """The name of its task."""
        return self._field("task")

    def _field(self, name: str) -> str:
        return dict(zip(self.fields[::2], self.fields[1::2], strict=True)).get(name, "")


@dataclass(frozen=True, slots=True)
class Fan:
    """A group: its members are sent together. A step after it waits for all of them."""

    members: tuple[tuple[Stage, ...], ...]
    keep: float = GROUP_KEPT


@dataclass(frozen=True, slots=True)
class Member:
    """The end of a group's member, the first of which is number 1. The stage after it is sent once all are here."""

    index: int
    size: int
    keep: float = GROUP_KEPT


Stage = Next | Fan | Member


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is sent now, or `delay` seconds later."""

    stream: str
    task_id: str
    fields: list[Field]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Joined:
    """A member of a group is done. `message` is sent once all `size` are; the task id in it names the group.

    `rest` closes the arguments of the message behind the list of results; empty if it is not given them.
    """

    index: int
    size: int
    keep: float
    result: bytes
    message: Sent
    rest: bytes


# --- what is sent ------------------------------------------------------------------------------


def going_on(
    stages: Sequence[Stage], result: bytes = b"", *, now: float, group: str | None = None
) -> list[Sent | Joined]:
    """Return what is sent when a step has succeeded.

    `result` is its result as JSON, empty for none; `now` is Unix seconds; `group` the only consumer group that is
    to run what is sent.
    """
    return [_message(stage, rest, result or _NOTHING, now, group) for stage, rest in _heads(stages)]


def awaited(stages: Sequence[Stage]) -> Iterator[tuple[str, float]]:
    """Yield the id of each later step whose result is wanted, and for how long (s)."""
    for stage in stages:
        match stage:
            case Next(keep=keep):
                if keep:
                    yield stage.task_id, keep
            case Fan(members):
                for member in members:
                    yield from awaited(member)
            case Member():
                pass


def encoded_result(stages: Sequence[Stage], task: str, result: Any, *, default: Default | None, limit: int) -> bytes:
    """Return a result as JSON if any next step is given it, empty if none is.

    Raises EncodingError or PayloadTooLargeError if such a step cannot be sent with it.
    """
    fed = [(stage, rest) for stage, rest in _heads(stages) if _receiver(stage, rest).fed]
    if not fed:
        return b""
    receiver = _receiver(*fed[0])
    try:
        payload = dumps(result, default)
    except (TypeError, RecursionError) as error:
        what = f"1, the result of {task!r} ({type(result).__name__}),"
        raise EncodingError(receiver.task, what, str(error)) from error
    for stage, rest in fed:
        one = _message(stage, rest, payload, 0.0, None)
        size = len(one.result) if isinstance(one, Joined) else sum(map(len, one.fields))
        if size > limit:
            raise PayloadTooLargeError(_receiver(stage, rest).task, size, limit)
    return payload


def _heads(stages: Sequence[Stage]) -> Iterator[tuple[Next | Member, Sequence[Stage]]]:
    """Yield the stages that come next, each with what comes after it."""
    match stages:
        case [Fan(members, keep), *rest]:
            for index, member in enumerate(members, 1):
                end = (Member(index, len(members), keep), *rest) if rest else ()
                yield from _heads((*member, *end))
        case [Next() | Member() as stage, *rest]:
            yield stage, rest


def _receiver(stage: Next | Member, rest: Sequence[Stage]) -> Next:
    """Return the step that a result is for."""
    receiver = rest[0] if isinstance(stage, Member) else stage
    if not isinstance(receiver, Next):
        raise UndecodableError("field 'then': the end of a group's member has no step after it")
    return receiver


def _message(
    stage: Next | Member, rest: Sequence[Stage], result: bytes, now: float, group: str | None
) -> Sent | Joined:
    step = _receiver(stage, rest)
    fields = dict(zip(step.fields[::2], step.fields[1::2], strict=True))
    flat: list[Field] = []
    args = fields.pop("args", "[]").strip()[1:-1].strip().encode()
    more = b"," + args if args else b""
    for pair in fields.items():
        flat += pair
    after = rest[1:] if isinstance(stage, Member) else rest
    if after:
        flat += ("then", encode(after))
    if step.expires is not None:
        flat += ("expires", str(milliseconds(now + step.expires)))
    if group is not None:
        flat += ("group", group)
    joined = isinstance(stage, Member) and step.fed
    if step.fed and not joined:
        flat += ("args", b"[" + result + more + b"]")
    elif args and not joined:
        flat += ("args", b"[" + args + b"]")
    delay = max(0.0, step.at - now) if step.at is not None else step.delay or 0.0
    message = Sent(step.stream, step.task_id, flat, delay)
    if isinstance(stage, Next):
        return message
    kept = result if step.fed else _NOTHING
    return Joined(stage.index, stage.size, stage.keep, kept, message, more + b"]" if joined else b"")


# --- the field -----------------------------------------------------------------------------------


def encode(stages: Sequence[Stage]) -> bytes:
    """Return stages as the field `then`."""
    return orjson.dumps([_plain(stage) for stage in stages])


def decode(raw: bytes) -> list[Stage]:
    """Return the stages of a field `then`. Raises UndecodableError if they are none."""
    try:
        return _stages(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise UndecodableError(f"field 'then' is {shown(raw)}, which is not JSON ({error})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UndecodableError(f"field 'then' is {shown(raw)}, which is no list of stages ({error})") from error


def _plain(stage: Stage) -> dict[str, Any]:
    match stage:
        case Next():
            whole = {
                "send": stage.stream, "fields": stage.fields, "fed": stage.fed or None, "delay": stage.delay,
                "at": stage.at, "expires": stage.expires, "keep": stage.keep,
            }  # fmt: skip
            return {name: value for name, value in whole.items() if value is not None}
        case Fan():
            return {"group": [[_plain(one) for one in member] for member in stage.members], "keep": stage.keep}
        case Member():
            return {"member": stage.index, "of": stage.size, "keep": stage.keep}


def _stages(found: Any) -> list[Stage]:
    if not isinstance(found, list) or not found:
        raise ValueError("a list of at least one stage is wanted")
    stages = [_stage(one) for one in found]
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        if isinstance(stage, Member) and after is None:
            raise ValueError("a member of a group with no step after the group")
        if not isinstance(stage, Next) and not isinstance(after, Next | None):
            raise ValueError("a group with no step after it")  # noqa: TRY004 - it is what is found, not its type
    return stages


def _stage(found: Any) -> Stage:
    if "send" in found:
        fields = tuple(_text(part) for part in found["fields"])
        if len(fields) % 2 or not fields:
            raise ValueError("fields come in pairs")
        step = Next(
            _text(found["send"]), fields, found.get("fed") is True, _seconds(found, "delay"), _seconds(found, "at"),
            _seconds(found, "expires"), _seconds(found, "keep"),
        )  # fmt: skip
        if not step.task or not step.task_id:
            raise ValueError("a step without 'task' or 'id'")
        return step
    keep = _seconds(found, "keep") or GROUP_KEPT
    if "group" in found:
        members = tuple(tuple(_stages(member)) for member in found["group"])
        if not members:
            raise ValueError("a group without members")
        return Fan(members, keep)
    index, size = found["member"], found["of"]
    if type(index) is not int or type(size) is not int or not 1 <= index <= size:
        raise ValueError(f"member {index!r} of {size!r}")
    return Member(index, size, keep)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _seconds(found: dict[str, Any], name: str) -> float | None:
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{name} is {value!r}")
    return float(value)
