"""The next step of a workflow: encodes and decodes the field `then` of a message, and builds the messages in it.

Pure; knows no key. The field holds a flat list of stages, the next one first. Each message that is sent has the rest of
the list as its own `then`. The list is flat because nested messages would double their backslashes with each step. Each
step lies in it as its flat fields, so it is encoded as JSON once.

A result passes from step to step as encoded bytes. It is not decoded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streamq.diagnostics.safe_text import str_of
from streamq.errors import EncodingError, PayloadTooLargeError, UndecodableError
from streamq.wire import bounds
from streamq.wire.bounds import shown
from streamq.wire.message import Field, milliseconds
from streamq.wire.names import check_field
from streamq.wire.workflow import GROUP_KEPT, check_nesting

_NOTHING = b"null"
NOT_TAKEN = b""  # for the result of a member, where the step after the group does not take the results


@dataclass(frozen=True, slots=True)
class NextStep:
    """A step: a message for `stream`. `takes_result`: the result of the step before becomes its first argument.

    `delay` (s) and `expires` (s) count from when it is sent; `at` (Unix seconds) is used instead of a delay. `keep` (s)
    is how long its result is kept. None for none of these.
    """

    stream: str
    fields: tuple[str, ...]
    takes_result: bool = False
    delay: float | None = None
    at: float | None = None
    expires: float | None = None
    keep: float | None = None

    @property
    def task_id(self) -> str:
        """The id of its task."""
        return self._field("id")

    @property
    def task(self) -> str:
        """The name of its task."""
        return self._field("task")

    def _field(self, name: str) -> str:
        return dict(zip(self.fields[::2], self.fields[1::2], strict=True)).get(name, "")


@dataclass(frozen=True, slots=True)
class NextGroup:
    """A group: its members are sent together. The step after it waits for all of them."""

    members: tuple[tuple[Stage, ...], ...]
    keep: float = GROUP_KEPT


@dataclass(frozen=True, slots=True)
class GroupMemberEnd:
    """The end of member `index` (from 1) of a group of `size`. The stage after it is sent once all members are done."""

    index: int
    size: int
    keep: float = GROUP_KEPT


Stage = NextStep | NextGroup | GroupMemberEnd


@dataclass(frozen=True, slots=True)
class NextMessage:
    """A message that is sent now, or `delay` seconds later."""

    stream: str
    task_id: str
    fields: list[Field]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class JoinMessage:
    """A member of a group is done. `message` is sent once all `size` are done; its task id identifies the group.

    `rest` is the JSON after the list of results in the arguments of `message`; empty if it does not take the results.
    """

    index: int
    size: int
    keep: float
    result: bytes
    message: NextMessage
    rest: bytes


# --- the next messages ------------------------------------------------------------------------------


def next_messages(
    stages: Sequence[Stage], result: bytes = b"", *, now: float, group: str | None = None
) -> list[NextMessage | JoinMessage]:
    """Return the messages that are sent when a step has succeeded.

    `result` is its result as JSON, empty for none. `now` is Unix seconds. `group` is the only consumer group that runs
    the messages.
    """
    return [_message(stage, rest, result or _NOTHING, now, group) for stage, rest in _next_stages(stages)]


def wanted_results(stages: Sequence[Stage]) -> Iterator[tuple[str, float]]:
    """Yield the id of each later step whose result is kept, and how long (s)."""
    for stage in stages:
        match stage:
            case NextStep(keep=keep):
                if keep:
                    yield stage.task_id, keep
            case NextGroup(members):
                for member in members:
                    yield from wanted_results(member)
            case GroupMemberEnd():
                pass


def encoded_result(
    stages: Sequence[Stage], task: str, result: Any, *, encode: Callable[[Any], bytes], limit: int
) -> bytes:
    """Return a result as JSON if a next step takes it, empty if none does. `encode` writes it.

    Raises EncodingError or PayloadTooLargeError if such a step cannot be sent with it.
    """
    receiving = [(stage, rest) for stage, rest in _next_stages(stages) if _receiving_step(stage, rest).takes_result]
    if not receiving:
        return b""
    receiver = _receiving_step(*receiving[0])
    try:
        payload = encode(result)
    except BaseException as error:  # the encoder runs code of the user, which may raise anything
        what = f"1, the result of {task!r} ({type(result).__name__}),"
        raise EncodingError(receiver.task, what, str_of(error)) from error
    for stage, rest in receiving:
        one = _message(stage, rest, payload, 0.0, None)
        size, most = sum(map(len, one.message.fields if isinstance(one, JoinMessage) else one.fields)), limit
        if isinstance(one, JoinMessage):  # the results of all members become one argument
            size, most = len(one.result), min(limit, int(bounds.WORKFLOW_BYTES.highest) // one.size)
        if size > most:
            raise PayloadTooLargeError(_receiving_step(stage, rest).task, size, most)
    return payload


def _next_stages(stages: Sequence[Stage]) -> Iterator[tuple[NextStep | GroupMemberEnd, Sequence[Stage]]]:
    """Yield the stages that come next, each with the stages after it."""
    match stages:
        case [NextGroup(members, keep), *rest]:
            for index, member in enumerate(members, 1):
                end = (GroupMemberEnd(index, len(members), keep), *rest) if rest else ()
                yield from _next_stages((*member, *end))
        case [NextStep() | GroupMemberEnd() as stage, *rest]:
            yield stage, rest


def _receiving_step(stage: NextStep | GroupMemberEnd, rest: Sequence[Stage]) -> NextStep:
    """Return the step that gets the result."""
    receiver = rest[0] if isinstance(stage, GroupMemberEnd) else stage
    if not isinstance(receiver, NextStep):
        raise UndecodableError("field 'then': the end of a group's member has no step after it")
    return receiver


def _message(
    stage: NextStep | GroupMemberEnd, rest: Sequence[Stage], result: bytes, now: float, group: str | None
) -> NextMessage | JoinMessage:
    step = _receiving_step(stage, rest)
    fields = dict(zip(step.fields[::2], step.fields[1::2], strict=True))
    flat: list[Field] = []
    args = fields.pop("args", "[]").strip()[1:-1].strip().encode()
    more = b"," + args if args else b""
    for pair in fields.items():
        flat += pair
    after = rest[1:] if isinstance(stage, GroupMemberEnd) else rest
    if after:
        flat += ("then", encode(after))
    if step.expires is not None:
        flat += ("expires", str(milliseconds(now + step.expires)))
    if group is not None:
        flat += ("group", group)
    joined = isinstance(stage, GroupMemberEnd) and step.takes_result
    if step.takes_result and not joined:
        flat += ("args", b"[" + result + more + b"]")
    elif args and not joined:
        flat += ("args", b"[" + args + b"]")
    delay = max(0.0, step.at - now) if step.at is not None else step.delay or 0.0
    message = NextMessage(step.stream, step.task_id, flat, delay)
    if isinstance(stage, NextStep):
        return message
    kept = result if step.takes_result else NOT_TAKEN
    return JoinMessage(stage.index, stage.size, stage.keep, kept, message, more + b"]" if joined else b"")


# --- the field -----------------------------------------------------------------------------------


def encode(stages: Sequence[Stage]) -> bytes:
    """Return stages as the field `then`."""
    return orjson.dumps([_plain(stage) for stage in stages])


def decode(raw: bytes) -> list[Stage]:
    """Return the stages of a field `then`. Raises UndecodableError if they are none."""
    try:
        return _stages(orjson.loads(raw), 0)
    except orjson.JSONDecodeError as error:
        raise UndecodableError(f"field 'then' is {shown(raw)}, which is not JSON ({error})") from error
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UndecodableError(f"field 'then' is {shown(raw)}, which is no list of stages ({error})") from error


def _plain(stage: Stage) -> dict[str, Any]:
    match stage:
        case NextStep():
            whole = {
                "send": stage.stream, "fields": stage.fields, "fed": stage.takes_result or None, "delay": stage.delay,
                "at": stage.at, "expires": stage.expires, "keep": stage.keep,
            }  # fmt: skip
            return {name: value for name, value in whole.items() if value is not None}
        case NextGroup():
            return {"group": [[_plain(one) for one in member] for member in stage.members], "keep": stage.keep}
        case GroupMemberEnd():
            return {"member": stage.index, "of": stage.size, "keep": stage.keep}


def _stages(found: Any, depth: int) -> list[Stage]:
    if not isinstance(found, list) or not found:
        raise ValueError("it must be a list of at least one stage")
    check_nesting(depth, ValueError)
    stages = [_stage(one, depth) for one in found]
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        if isinstance(stage, GroupMemberEnd) and after is None:
            raise ValueError("a member of a group with no step after the group")
        if not isinstance(stage, NextStep) and not isinstance(after, NextStep | None):
            raise ValueError("a group with no step after it")  # noqa: TRY004 - the value is wrong, not its type
    return stages


def _stage(found: Any, depth: int) -> Stage:
    if not isinstance(found, dict):
        raise TypeError(f"a stage is {str(found)[:80]!r}, and no object")
    if "send" in found:
        fields = tuple(_text(part) for part in found["fields"])
        if len(fields) % 2 or not fields:
            raise ValueError("fields come in pairs")
        step = NextStep(
            _text(found["send"]), fields, found.get("fed") is True, _seconds(found, "delay", bounds.DELAY),
            _seconds(found, "at", bounds.AT), _seconds(found, "expires", bounds.EXPIRES),
            _seconds(found, "keep", bounds.RESULT_TTL),
        )  # fmt: skip
        if not step.task or not step.task_id:
            raise ValueError("a step without 'task' or 'id'")
        check_field("task", step.task, "task")
        check_field("task_id", step.task_id, "id")
        return step
    keep = _seconds(found, "keep", bounds.KEEP) or GROUP_KEPT
    if "group" in found:
        members = tuple(tuple(_stages(member, depth + 1)) for member in found["group"])
        if not members:
            raise ValueError("a group without members")
        return NextGroup(members, keep)
    index, size = found["member"], found["of"]
    if type(index) is not int or type(size) is not int or not 1 <= index <= size <= bounds.MEMBERS.highest:
        raise ValueError(f"member {index!r} of {size!r}")
    return GroupMemberEnd(index, size, keep)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _seconds(found: dict[str, Any], name: str, bound: bounds.Bound) -> float | None:
    value = found.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in bound:
        raise ValueError(f"{name} is {value!r}, and not {bound.range}")
    return float(value)
