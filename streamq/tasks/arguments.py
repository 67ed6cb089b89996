"""The arguments of a function: checked against its signature, and sent and received by its annotations.

`json_type` says which types there are, with the extra `pydantic` and without it.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

from streamq.diagnostics.safe_text import str_of
from streamq.errors import ArgumentsError, EncodingError
from streamq.tasks.annotations import return_annotation, unpacked_fields
from streamq.tasks.function import written
from streamq.tasks.json_type import JsonType, UnfitError, has_pydantic

SentArguments = tuple[Sequence[Any], Mapping[str, Any]]
_UNCHECKED = "@task(validate=False) leaves it unchecked"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _NotGiven:
    """The default of a parameter that need not be given, and that has no default: a key of `Unpack[...]`."""

    def __repr__(self) -> str:
        return "..."


NOT_GIVEN = _NotGiven()


class Arguments:
    """The parameters of a function, and what it returns. Inspected on first use, not when the task is declared."""

    def __init__(self, name: str, function: Callable[..., Any], *, validate: bool) -> None:
        self._name = name
        self._function = function
        self.validates = validate

    def __repr__(self) -> str:
        return f"<Arguments of {self._name}{self.signature}>"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the function, with the keys of `**options: Unpack[...]` as parameters of their own."""
        return _unpacked(inspect.signature(self._function), self._function)

    @functools.cached_property
    def unpacks(self) -> bool:
        """Are there keys of `Unpack[...]`? Then a call of the function itself does not say which are wrong."""
        return [*inspect.signature(self._function).parameters] != [*self.signature.parameters]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The names of the parameters."""
        return frozenset(self.signature.parameters)

    @functools.cached_property
    def _required_positional_only(self) -> frozenset[str]:
        """The names of the positional-only parameters that have no default."""
        parameters = self.signature.parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty)

    @functools.cached_property
    def _positional_range(self) -> tuple[int, int]:
        """The least and the most positional arguments with which a call fits, if it has no keyword arguments."""
        parameters = self.signature.parameters.values()
        if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
            return 1, 0
        positional = [p for p in parameters if p.kind in _POSITIONAL]
        most = 1_000_000 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
        return sum(p.default is p.empty for p in positional), most

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentsError if the function cannot be called with these arguments."""
        least, most = self._positional_range
        if not kwargs and least <= len(args) <= most:
            return
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsError(self._name, f"{error}; its parameters are {str_of(self.signature)}") from None
        # Python 3.13.0 accepts a positional-only parameter by its name.
        if missing := self._required_positional_only - bound.arguments.keys():
            raise ArgumentsError(self._name, f"missing {sorted(missing)}; its parameters are {str_of(self.signature)}")

    @functools.cached_property
    def converter(self) -> Converter | None:
        """The converter of arguments. None without annotations, or with `validate=False`."""
        if not self.validates or all(p.annotation is p.empty for p in self.signature.parameters.values()):
            return None
        return self._converter(read_hints(self._name, self._function))

    def _converter(self, hints: Mapping[str, Any]) -> Converter:
        return Converter(self._name, self.signature, hints)

    @functools.cached_property
    def default(self) -> Callable[[Any], Any] | None:
        """What encodes values that orjson does not know, where no annotation says how. None without pydantic."""
        return encode_extra if self.converter is not None and has_pydantic() else None

    @functools.cached_property
    def result_type(self) -> JsonType:
        """The type of what a run returns: any, without a return annotation or with `validate=False`."""
        if not self.validates:
            return JsonType(default=self.default)
        try:
            annotation = self._returned(read_hints(self._name, self._function))
        except ArgumentsError as error:
            return JsonType.unusable(error.reason, default=self.default)
        return JsonType(annotation, default=self.default)

    def prepare(self) -> None:
        """Load what values of any type need, now: a worker may have no descriptor left for an import later."""
        if self.converter is not None:
            self.converter.prepare()
        self.result_type.prepare()

    def check(self, *, keeps_result: bool = True) -> None:
        """Raise ArgumentsError for an annotation of an argument that cannot be read, or checked.

        For that of the result as well if it `keeps_result`: nobody would get it.
        """
        if not self.validates:
            return
        self.converter  # noqa: B018 - it checks the arguments when it is made
        if keeps_result and self.result_type.problem:
            read_hints(self._name, self._function)
            if has_pydantic():
                why = f"the annotation of its result cannot be checked: {self.result_type.problem}; {_UNCHECKED}"
                raise ArgumentsError(self._name, why)

    def _returned(self, hints: Mapping[str, Any]) -> Any:
        return return_annotation(hints)

    def sendable(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, first: int = 0) -> SentArguments:
        """Return arguments as they are sent: what arrives is equal to it, and of the annotated types.

        `first` is how many positional arguments come before these. Raises ArgumentsError for what does not fit the
        signature or the annotations, and EncodingError for what would not arrive as it was sent.
        """
        self.bind((*(None,) * first, *args) if first else args, kwargs)
        return (args, kwargs) if self.converter is None else self.converter.sendable(args, kwargs, first)


class Converter:
    """Makes arguments ready to be sent, and converts those that came, each by its annotation."""

    def __init__(self, name: str, signature: inspect.Signature, hints: Mapping[str, Any]) -> None:
        self._name = name
        self._positional: list[tuple[str, JsonType]] = []
        self._further: tuple[str, JsonType] | None = None
        self._named: dict[str, JsonType] = {}
        self._others: JsonType | None = None
        for parameter in signature.parameters.values():
            kind, annotation = parameter.kind, hints.get(parameter.name, parameter.annotation)
            if kind is parameter.VAR_KEYWORD and (keys := unpacked_fields(annotation)) is not None:
                self._named |= {key: self._type(key, hint) for key, (hint, _) in keys.items()}
                continue
            one = self._type(parameter.name, annotation)
            if kind in _POSITIONAL:
                self._positional.append((parameter.name, one))
            if kind is parameter.VAR_POSITIONAL:
                self._further = (parameter.name, one)
            elif kind is parameter.VAR_KEYWORD:
                self._others = one
            elif kind is not parameter.POSITIONAL_ONLY:
                self._named[parameter.name] = one

        self._exact = [kind.exact for _, kind in self._positional]

    def _type(self, name: str, annotation: Any) -> JsonType:
        made = JsonType(annotation)
        if made.problem and has_pydantic():
            why = f"the annotation of {name} cannot be checked: {made.problem}; {_UNCHECKED}"
            raise ArgumentsError(self._name, why)
        return made

    def prepare(self) -> None:
        """Make each type ready for values that need a conversion."""
        further = () if self._further is None else (self._further[1],)
        others = () if self._others is None else (self._others,)
        for kind in (*(one for _, one in self._positional), *further, *self._named.values(), *others):
            kind.prepare()

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SentArguments:
        """Return converted arguments that were read from JSON. Raises ArgumentsError, which names what does not fit."""
        if not kwargs and len(args) <= len(self._exact):
            for exact, value in zip(self._exact, args, strict=False):
                if exact is not None and type(value) not in exact:
                    break
            else:
                return args, kwargs
        return self._each(args, kwargs, 0, JsonType.received)

    def sendable(self, args: Sequence[Any], kwargs: Mapping[str, Any], first: int = 0) -> SentArguments:
        """Return arguments as they are sent. Raises ArgumentsError, which names those that do not fit."""
        if not kwargs and not first and len(args) <= len(self._exact):
            for exact, value in zip(self._exact, args, strict=False):
                if exact is not None and type(value) not in exact:
                    break
            else:
                return args, kwargs
        return self._each(args, kwargs, first, JsonType.sendable)

    def _each(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], first: int, convert: Callable[[JsonType, Any], Any]
    ) -> SentArguments:
        wrong: list[str] = []

        def converted(place: str, kind: JsonType | None, value: Any) -> Any:
            if kind is None:  # there is no such parameter: the call says so
                return value
            try:
                return convert(kind, value)
            except UnfitError as error:
                wrong.extend(
                    f"argument {'.'.join(filter(None, (place, part)))}{shown and f' = {shown}'}: {why}"
                    for part, why, shown in error.problems
                )
            except (TypeError, ValueError, RecursionError) as error:
                if convert is not JsonType.sendable:
                    raise  # in a worker: what a validator raised
                raise EncodingError(self._name, f"{place!r} ({type(value).__name__})", str_of(error)) from error
            return None

        known = self._positional[first:] if first else self._positional
        positional = [converted(name, kind, value) for (name, kind), value in zip(known, args, strict=False)]
        if len(args) > len(known):
            name, kind = self._further or ("", None)
            positional += [converted(f"{name}.{at}", kind, value) for at, value in enumerate(args[len(known) :])]
        named = {name: converted(name, self._named.get(name, self._others), value) for name, value in kwargs.items()}
        if wrong:
            raise ArgumentsError(self._name, "; ".join(wrong))
        return positional, named


def _unpacked(signature: inspect.Signature, function: Callable[..., Any]) -> inspect.Signature:
    *others, last = signature.parameters.values() or (None,)
    if last is None or last.kind is not last.VAR_KEYWORD:
        return signature
    annotation = last.annotation
    if isinstance(annotation, str) and "Unpack" in annotation:
        with suppress(ArgumentsError):  # one that cannot be read: the converter says so
            annotation = read_hints(last.name, function).get(last.name)
    if isinstance(annotation, str) or (fields := unpacked_fields(annotation)) is None:
        return signature
    with suppress(ValueError):  # a key that is no name of a parameter, such as "from": it is converted all the same
        keys = [
            last.replace(name=key, kind=last.KEYWORD_ONLY, annotation=hint, default=last.empty if needed else NOT_GIVEN)
            for key, (hint, needed) in fields.items()
        ]
        return signature.replace(parameters=[*others, *keys])
    return signature


def read_hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a task's function. Raises ArgumentsError for one that cannot be read."""
    try:
        return typing.get_type_hints(written(function), include_extras=True)
    except Exception as error:  # an annotation that is a text is code, which may raise anything
        remedy = "import it where the module runs (not under TYPE_CHECKING), or use @task(validate=False)"
        raise ArgumentsError(name, f"an annotation cannot be read: {str_of(error)}; {remedy}") from error


def encode_extra(value: Any) -> Any:
    """Return a value that orjson cannot encode as one that it can: of a model, Decimal, set, bytes, ...

    pydantic converts it back in the worker. Raises TypeError for any other value.
    """
    from decimal import Decimal  # noqa: PLC0415 - a third of a MiB, which pydantic has loaded already

    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "get_secret_value"):
        raise TypeError(f"{type(value).__name__} is a secret: send its value, or a reference to where it is kept")
    if hasattr(type(value), "__pydantic_fields__"):
        return orjson.Fragment(JsonType(type(value)).encode(value))
    from pydantic_core import PydanticSerializationError, to_jsonable_python  # noqa: PLC0415

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"{type(value).__name__} is not JSON serializable: {error}") from error
