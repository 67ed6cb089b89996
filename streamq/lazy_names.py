"""Names of a package that are loaded on first use (PEP 562), so that importing the package is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def load_on_first_use(
    namespace: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    `namespace` is the package's `globals()`, and `homes` says for each name in which module below the package it is.
    The first raises AttributeError for other names, and ImportError if a dependency lacks what the module needs.
    """
    package = namespace["__name__"]

    def load(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415

        try:
            value = getattr(import_module(f"{package}.{home}"), name)
        except AttributeError as error:  # of a dependency: as itself it would read as if there were no such name here
            raise ImportError(f"{package}.{name} cannot be loaded: {error}") from error
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return load, names
