"""Do these arguments fit this function? And, with pydantic, what do they become?

Without the `pydantic` extra only the signature is checked. With it, arguments are also checked
against the annotations and converted to them (datetime, UUID, Decimal, models, ...).
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from streamq.errors import ArgumentsError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """What is known of a function's parameters, found out on first use."""

    def __init__(self, name: str, function: Callable[..., Any], *, validate: bool) -> None:
        self._name = name
        self._function = function
        self._validate = validate

    def __repr__(self) -> str:
        return f"<Arguments of {self._name}{self.signature}>"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature."""
        return inspect.signature(self._function)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(self.signature.parameters)

    @functools.cached_property
    def _needed(self) -> frozenset[str]:
        """The names of the positional-only parameters that have no default."""
        parameters = self.signature.parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty)

    @functools.cached_property
    def _plain(self) -> tuple[int, int]:
        """The least and most positional arguments that need no closer look."""
        parameters = self.signature.parameters.values()
        if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
            return 1, 0
        positional = [p for p in parameters if p.kind in _POSITIONAL]
        most = 1_000_000 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
        return sum(p.default is p.empty for p in positional), most

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises ArgumentsError if the function cannot be called so."""
        least, most = self._plain
        if not kwargs and least <= len(args) <= most:
            return
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsError(self._name, f"{error}; its parameters are {self.signature}") from None
        if missing := self._needed - bound.arguments.keys():  # Python 3.13.0 takes a keyword for a positional-only one
            raise ArgumentsError(self._name, f"missing {sorted(missing)}; its parameters are {self.signature}")

    @functools.cached_property
    def converter(self) -> Converter | None:
        """What checks and converts arguments; None without pydantic or annotations."""
        annotated = any(p.annotation is not p.empty for p in self.signature.parameters.values())
        if not self._validate or not annotated or find_spec("pydantic") is None:
            return None
        return Converter(self._name, self._function)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises ArgumentsError if these arguments do not fit the signature or the annotations."""
        self.bind(args, kwargs)
        if self.converter is not None:
            self.converter(args, kwargs)


class Converter:
    """Arguments as the annotations want them, by pydantic."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        from pydantic import ConfigDict, TypeAdapter  # noqa: PLC0415 - an extra, and slow to import
        from pydantic_core import ArgsKwargs, ValidationError  # noqa: PLC0415

        # A function of the same signature that gives back what it was called with: pydantic
        # then validates a call without making it.
        def caught(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs

        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError) as error:
            remedy = "import it where the module runs (not under TYPE_CHECKING), or use @task(validate=False)"
            raise ArgumentsError(name, f"an annotation cannot be read: {error}; {remedy}") from error
        hints.pop("return", None)
        signature = inspect.signature(function)
        parameters = [p.replace(annotation=hints.get(p.name, p.empty)) for p in signature.parameters.values()]
        caught.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        caught.__annotations__ = hints
        caught.__module__ = function.__module__
        self._name = name
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        try:
            config = ConfigDict(arbitrary_types_allowed=True)
            self._adapter: Any = TypeAdapter(typing.cast("Any", caught), config=config)
        except Exception as error:  # pydantic has many for a type that it cannot check
            remedy = "@task(validate=False) leaves them unchecked"
            raise ArgumentsError(name, f"its annotations cannot be checked: {error}; {remedy}") from error
        self._call = ArgsKwargs
        self._invalid = ValidationError

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the converted arguments. Raises ArgumentsError naming each that does not fit."""
        try:
            converted: Any = self._adapter.validate_python(self._call(tuple(args), dict(kwargs)))
        except self._invalid as error:
            wrong = "; ".join(
                f"argument {self._place(e['loc'])} = {e['input']!r:.80}: {e['msg']}"
                for e in error.errors(include_url=False)
            )
            raise ArgumentsError(self._name, wrong) from None
        return typing.cast("tuple[Sequence[Any], Mapping[str, Any]]", converted)

    def _place(self, location: Sequence[int | str]) -> str:
        """Return where a value stands, as the signature says it: `order.lines.0`."""
        first, *rest = location or ("?",)
        if isinstance(first, int) and first < len(self._positional):
            first = self._positional[first]
        return ".".join(map(str, (first, *rest)))


def encode_extra(value: Any) -> Any:
    """Turn what orjson lacks and pydantic reads back into JSON: models, Decimal, sets, bytes, ...

    Raises TypeError for anything else.
    """
    from decimal import Decimal  # noqa: PLC0415 - a third of a MiB; pydantic has loaded it

    if isinstance(value, Decimal):
        return str(value)
    from pydantic_core import PydanticSerializationError, to_jsonable_python  # noqa: PLC0415

    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"{type(value).__name__} is not JSON serializable: {error}") from error
