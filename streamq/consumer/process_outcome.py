"""The way of an outcome from the process of a handler to the worker: a result, or what the handler raised.

Pickle runs code of the user, which may raise anything, and what anyio's own pickling raises ends that process or its
run. So the process makes bytes and texts of its outcome itself, and nothing here raises on the way:

- A result is written as JSON there, as waiters get it: no code of the user's runs in the worker for it. One that cannot
  be written is replaced by a `LostResult`, which is no JSON: the work is done.
- An exception arrives as its pickle if it comes out of that as it was. One with an `__init__` of its own often does
  not: it is made again from its class, `args` and attributes, without a call of its `__init__`. Else it is replaced by
  a `ProcessHandlerError`, and so is what would end the worker. It has its frames in the process, and so have its cause,
  its context and the members of a group.

pickle is half a MiB, and loaded once a process is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, assert_never

import orjson

from streamq.diagnostics.safe_text import frames_of, str_of, type_name
from streamq.diagnostics.sent_frames import SentFrame, sent_frames, traceback_with
from streamq.errors import ArgumentsError, ProcessHandlerError
from streamq.wire.bounds import RESULT
from streamq.wire.dead_letter_fields import ERROR_KEPT
from streamq.wire.message import dumps

_LARGEST = 1 << 18  # bytes of a part of an exception that is sent
_MOST_CHAINED = 20  # exceptions of a chain or a group, of which each arrives with its frames
_OURS = "streamq.consumer."
_AS_JSON: Final = b"j"  # the first byte of arguments
_AS_PICKLE: Final = b"p"
_MAIN = "__mp_main__"  # the name of the program's main module in the process, as in multiprocessing


class EncodedResult:
    """What a handler in a process returned, as JSON."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def __repr__(self) -> str:
        return f"<EncodedResult of {len(self.payload)} bytes>"


class LostResult:
    """What a handler in a process returned and what could not be brought to the worker, for the reason `why`."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"<LostResult {type(self).__name__}: {self.why}>"


@dataclass(frozen=True, slots=True)
class SentValue:
    """A result as JSON; or why it could not be written: then `encoded` is None, and `kind` the name of its class."""

    encoded: bytes | None
    kind: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class SentError:
    """An exception. `pickled` is None if its pickle is not what it was; `members` are those of a group.

    `kind` is its qualified type name, (`module`, `qualname`) where its class is found. `cause` and `context` are those
    that the traceback shows before it; `suppressed`: not the context.
    """

    kind: str
    text: str
    frames: tuple[SentFrame, ...] = ()
    module: str = ""
    qualname: str = ""
    pickled: bytes | None = None
    args: bytes | None = None
    attributes: dict[str, bytes] = field(default_factory=dict)
    message: str = ""
    members: tuple[SentError, ...] | None = None
    cause: SentError | None = None
    context: SentError | None = None
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class SentBatch:
    """The results of a batch, each for itself; None if its handler returned None."""

    items: tuple[SentValue | SentError, ...] | None


@dataclass(frozen=True, slots=True)
class SentRefusal:
    """The arguments do not fit, for this reason: the function was not called."""

    reason: str


Sent = SentValue | SentError | SentBatch | SentRefusal
_CLASSES = {
    (one.__module__, one.__qualname__): one for one in (SentValue, SentError, SentBatch, SentRefusal, SentFrame)
}


# --- in the process ---------------------------------------------------------------------------


def send_result(returned: Any, encode: Callable[[Any], bytes], *, batch: bool) -> Sent:
    """Return what a handler returned, as it is sent: `encode` writes it as JSON. Never raises."""
    try:
        if not batch:
            return _value(returned, encode)
        if returned is None:
            return SentBatch(None)
        if not issubclass(type(returned), list | tuple):
            return SentValue(None, str_of(type(returned).__name__), "it is no list")
        return SentBatch(
            tuple(send_error(one) if issubclass(type(one), BaseException) else _value(one, encode) for one in returned)
        )
    except BaseException as error:  # noqa: BLE001 - the user's code: a list of a class of its own, `__class__`
        return SentValue(None, str_of(type(returned).__name__), f"{type_name(error)}: {str_of(error)}")


def send_error(error: BaseException, *, trimmed: bool = True) -> SentError:
    """Return an exception as it is sent, with its frames; `trimmed`: without those of streamq. Never raises."""
    frames: tuple[SentFrame, ...] = ()
    try:
        frames = sent_frames(_from_users_frame(error) if trimmed else error)
        return _send(error, {})
    except BaseException:  # noqa: BLE001 - the user's code; RecursionError, MemoryError
        return SentError(_main_module(type_name(error)), str_of(error, ERROR_KEPT), frames)


def _value(value: Any, encode: Callable[[Any], bytes]) -> SentValue:
    kind = str_of(type(value).__name__)
    try:
        encoded = encode(value)
    except BaseException as error:  # noqa: BLE001 - the encoder runs code of the user, which may raise anything
        return SentValue(None, kind, str_of(error))
    if len(encoded) > RESULT.highest:
        return SentValue(None, kind, f"it has {len(encoded):,} bytes, and at most {RESULT.highest:,} are kept")
    return SentValue(encoded)


def _send(error: BaseException, chained: dict[int, BaseException]) -> SentError:
    """Return an exception as it is sent. `chained` are those of this chain so far, by their id."""
    chained[id(error)] = error
    kind, text = _main_module(type_name(error)), str_of(error, ERROR_KEPT)
    group = issubclass(type(error), BaseExceptionGroup)
    raw_args = BaseException.__dict__["args"].__get__(error)
    attributes = _or_none(lambda: dict(object.__getattribute__(error, "__dict__"))) or {}
    packed = {str_of(name): _small(partial(_dumps, value)) for name, value in attributes.items()}
    return SentError(
        kind, text, sent_frames(error),
        module=_main_module(str_of(type(error).__module__)), qualname=str_of(type(error).__qualname__),
        pickled=None if group else _small(lambda: _unchanged(error, text)),
        args=None if group else _small(lambda: _dumps(raw_args)),
        attributes={name: value for name, value in packed.items() if value is not None},
        message=str_of(BaseExceptionGroup.__dict__["message"].__get__(error)) if group else "",
        members=_send_members(error, chained) if group else None,
        cause=_send_chained(error, "__cause__", chained), context=_send_chained(error, "__context__", chained),
        suppressed=bool(BaseException.__dict__["__suppress_context__"].__get__(error)),
    )  # fmt: skip


def _small(make: Callable[[], bytes | None]) -> bytes | None:
    """Return a part of an exception, None if it raises or is large: the worker unpickles it in its event loop."""
    found = _or_none(make)
    return found if found is None or len(found) <= _LARGEST else None


def _send_members(group: BaseException, chained: dict[int, BaseException]) -> tuple[SentError, ...]:
    return tuple(_send(one, chained) for one in BaseExceptionGroup.__dict__["exceptions"].__get__(group))


def _send_chained(error: BaseException, which: str, chained: dict[int, BaseException]) -> SentError | None:
    """Return the cause or the context of an exception; None for what is in the chain already, or makes it too long."""
    other = BaseException.__dict__[which].__get__(error)
    if other is None or id(other) in chained or len(chained) >= _MOST_CHAINED:
        return None
    return _send(other, chained)


def _unchanged(error: BaseException, text: str) -> bytes | None:
    """Return the pickle of an exception if what comes out of it has its type and its text."""
    pickled = _dumps(error)
    again = _loads(pickled)
    return pickled if type(again) is type(error) and str_of(again, ERROR_KEPT) == text else None


def _from_users_frame(error: BaseException) -> BaseException:
    """Return an exception whose traceback begins in the user's code, if it has been there."""
    trace = whole = frames_of(error)
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(_OURS):
        trace = trace.tb_next
    BaseException.__dict__["__traceback__"].__set__(error, trace or whole)
    return error


def _main_module(name: str) -> str:
    return "__main__" + name.removeprefix(_MAIN) if name == _MAIN or name.startswith(_MAIN + ".") else name


def pack_answer(sent: Sent, memory: int, *, spoiled: bool = False) -> bytes:
    """Return an outcome, and the memory (bytes) of the process after it, as the worker reads them.

    `spoiled`: it left the process in a state in which no other run must begin.
    """
    return _dumps((sent, memory, spoiled))


def needs_main_module(packed: bytes) -> bool:
    """May arguments have objects of the program's main module?"""
    return packed.startswith(_AS_PICKLE)


# --- in the worker ----------------------------------------------------------------------------


def unpack_answer(packed: bytes) -> tuple[Sent, int, bool]:
    """Return what `pack_answer` was given in the process. Raises for what is none."""
    import io  # noqa: PLC0415
    import pickle  # noqa: PLC0415

    class Outcomes(pickle.Unpickler):
        """Makes objects of these classes alone."""

        def find_class(self, module: str, name: str) -> Any:
            return _CLASSES[module, name]

    sent, memory, spoiled = Outcomes(io.BytesIO(packed)).load()
    return sent, int(memory), bool(spoiled)


def pack(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return arguments as a process unpacks them, inside of its run: as the JSON that they came in.

    Middleware may have put something else in their place, which is pickled. Raises what that raises.
    """
    try:
        return _AS_JSON + dumps([args, kwargs])
    except TypeError:
        return _AS_PICKLE + _dumps((args, kwargs))


def unpack(packed: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments in the process."""
    if packed.startswith(_AS_PICKLE):
        return _loads(packed[len(_AS_PICKLE) :])  # type: ignore[no-any-return]
    args, kwargs = orjson.loads(packed[len(_AS_JSON) :])
    return args, kwargs


def receive(task: str, sent: Sent) -> Any:
    """Return the result of a process, or raise what its handler raised. It is an Exception, or SystemExit.

    Raises ArgumentsError if the arguments did not fit.
    """
    match sent:
        case SentRefusal():
            raise ArgumentsError(task, sent.reason)
        case SentError():
            raise error_of(sent)
        case SentBatch(items=None):
            return None
        case SentBatch(items=items):
            return [error_of(one) if isinstance(one, SentError) else _received(one) for one in items or ()]
        case SentValue():
            return _received(sent)
        case _:
            assert_never(sent)


def error_of(sent: SentError) -> BaseException:
    """Return an exception of a process, to be raised here."""
    error = _or_none(lambda: _checked(_unpickled(sent), sent))
    if error is None:
        error = _or_none(lambda: _checked(_made_again(sent), sent))
    if error is None:
        error = ProcessHandlerError(sent.kind, sent.text)
    _set(error, "__traceback__", traceback_with(sent.frames))
    for which, other in (("__cause__", sent.cause), ("__context__", sent.context)):
        if other is not None:
            _set(error, which, error_of(other))
    _set(error, "__suppress_context__", sent.suppressed)
    return error  # type: ignore[no-any-return]


def _set(error: BaseException, attribute: str, value: Any) -> None:
    BaseException.__dict__[attribute].__set__(error, value)


def _received(sent: SentValue) -> Any:
    if sent.encoded is None:
        return type(sent.kind, (LostResult,), {})(sent.why)
    return EncodedResult(sent.encoded)


def _checked(error: BaseException | None, sent: SentError) -> BaseException | None:
    """Return an exception if it is what was sent, and ends no worker. The members of a group have been checked."""
    if sent.members is not None:
        return error
    if error is None or not issubclass(type(error), Exception | SystemExit) or type_name(error) != sent.kind:
        return None
    return error if str_of(error, ERROR_KEPT) == sent.text else None


def _unpickled(sent: SentError) -> BaseException | None:
    error = None if sent.pickled is None else _loads(sent.pickled)
    return error if issubclass(type(error), BaseException) else None


def _made_again(sent: SentError) -> BaseException:
    kind: Any = _class_of(sent)
    error = _made(kind, sent)
    if sent.members is None and str_of(error, ERROR_KEPT) != sent.text:  # what its text is made of did not arrive
        names = {"__str__": lambda _: sent.text, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        with_text: Any = type(kind)(kind.__name__, (kind,), names)
        error = _made(with_text, sent)
    return error


def _made(kind: type[BaseException], sent: SentError) -> BaseException:
    """Return an exception of a class, made without an `__init__` of the user's."""
    args: Any = None if sent.args is None else _or_none(lambda: _loads(sent.args))
    if sent.members is not None:
        args = (sent.message, [error_of(one) for one in sent.members])
    elif not isinstance(args, tuple):
        args = (sent.text,)
    base: Any = kind
    while base.__module__ != "builtins":  # along the memory layout: another base would refuse to make it
        base = base.__base__
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)
    if sent.members is None:
        error.args = args
    attributes = object.__getattribute__(error, "__dict__")
    for name, pickled in sent.attributes.items():
        if (value := _or_none(partial(_loads, pickled))) is not None:
            attributes[name] = value
    return error


def _class_of(sent: SentError) -> type[BaseException]:
    """Return the class of an exception. Raises if it is not to be found here: a group is then a plain one."""
    try:
        found: Any = importlib.import_module(sent.module)
        for part in sent.qualname.split("."):
            found = getattr(found, part)
        if issubclass(found, BaseException):
            return found  # type: ignore[no-any-return]
    except BaseException:
        if sent.members is None:
            raise
    return BaseExceptionGroup


# --- both -------------------------------------------------------------------------------------


def _or_none(make: Callable[[], Any]) -> Any:
    """Return what a function gives, None if it raises: it runs code of the user, which may raise anything."""
    try:
        return make()
    except BaseException:  # noqa: BLE001
        return None


def _dumps(value: Any) -> bytes:
    import pickle  # noqa: PLC0415

    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _loads(pickled: bytes | None) -> Any:
    import pickle  # noqa: PLC0415

    if _MAIN not in sys.modules and "__main__" in sys.modules:
        sys.modules[_MAIN] = sys.modules["__main__"]  # as multiprocessing does
    return pickle.loads(pickled or b"")  # noqa: S301 - it comes from our own process
