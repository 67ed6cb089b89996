"""The check of arguments against a function: its signature, and with pydantic its annotations.

With the extra `pydantic`, arguments are also converted to their annotations (datetime, UUID, Decimal, models, ...).
Without it, only the signature is checked.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import ArgumentsError
from streamq.tasks.function import written

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of a function. They are inspected on first use, and not when the task is declared."""

    def __init__(self, name: str, function: Callable[..., Any], *, validate: bool) -> None:
        self._name = name
        self._function = function
        self._validate = validate

    def __repr__(self) -> str:
        return f"<Arguments of {self._name}{self.signature}>"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the function."""
        return inspect.signature(self._function)

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
        """The converter of arguments. None without pydantic, without annotations, or with `validate=False`."""
        annotated = any(p.annotation is not p.empty for p in self.signature.parameters.values())
        if not self._validate or not annotated or find_spec("pydantic") is None:
            return None
        return Converter(self._name, self._function)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentsError if these arguments do not fit the signature or the annotations."""
        self.bind(args, kwargs)
        if self.converter is not None:
            self.converter(args, kwargs)


class Converter:
    """Checks arguments against annotations, and converts them, with pydantic."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        from pydantic import ConfigDict, TypeAdapter  # noqa: PLC0415 - an extra, and slow to import
        from pydantic_core import ArgsKwargs, ValidationError  # noqa: PLC0415

        # A function of the same signature that returns its arguments: pydantic then validates a call without making it.
        def returned(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        try:
            hints = typing.get_type_hints(written(function), include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError) as error:
            remedy = "import it where the module runs (not under TYPE_CHECKING), or use @task(validate=False)"
            raise ArgumentsError(name, f"an annotation cannot be read: {error}; {remedy}") from error
        hints.pop("return", None)
        signature = inspect.signature(function)
        parameters = [p.replace(annotation=hints.get(p.name, p.empty)) for p in signature.parameters.values()]
        returned.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        returned.__annotations__ = hints
        returned.__module__ = written(function).__module__
        self._name = name
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        try:
            config = ConfigDict(arbitrary_types_allowed=True)
            self._adapter: Any = TypeAdapter(typing.cast("Any", returned), config=config)
        except Exception as error:  # pydantic raises many kinds for a type that it cannot check
            remedy = "@task(validate=False) leaves them unchecked"
            raise ArgumentsError(name, f"its annotations cannot be checked: {error}; {remedy}") from error
        self._call = ArgsKwargs
        self._invalid = ValidationError

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the converted arguments. Raises ArgumentsError, which names each argument that does not fit."""
        try:
            converted: Any = self._adapter.validate_python(self._call(tuple(args), dict(kwargs)))
        except self._invalid as error:
            wrong = "; ".join(
                f"argument {self._path(e['loc'])} = {repr_of(e['input']):.80}: {e['msg']}"
                for e in error.errors(include_url=False)
            )
            raise ArgumentsError(self._name, wrong) from None
        return typing.cast("tuple[Sequence[Any], Mapping[str, Any]]", converted)

    def _path(self, location: Sequence[int | str]) -> str:
        """Return the path to a value, with the names of the signature: `order.lines.0`."""
        first, *rest = location or ("?",)
        if isinstance(first, int) and first < len(self._positional):
            first = self._positional[first]
        return ".".join(map(str, (first, *rest)))


def encode_extra(value: Any) -> Any:
    """Return a value that orjson cannot encode as one that it can: of a model, Decimal, set, bytes, ...

    pydantic converts it back in the worker. Raises TypeError for any other value.
    """
    from decimal import Decimal  # noqa: PLC0415 - a third of a MiB, which pydantic has loaded already

    if isinstance(value, Decimal):
        return str(value)
    from pydantic_core import PydanticSerializationError, to_jsonable_python  # noqa: PLC0415

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"{type(value).__name__} is not JSON serializable: {error}") from error
