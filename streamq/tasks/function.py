"""The function of a task: what may be one, whether it is async, and what of it a task shows.

A task looks like its function: frameworks ask whether it is async, tools read its signature and its documentation, and
pickle takes it by its name. `inspect` takes an object for a function if it has the attributes of one, so a task has.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import Any

from streamq.diagnostics.safe_text import repr_of, str_of
from streamq.errors import ConfigurationError, TaskNameError


def function_of(given: Any) -> Callable[..., Any]:
    """Return the function of what `@task` was put on: that of a static method, else what was given.

    Raises ConfigurationError for what is no function.
    """
    if isinstance(given, staticmethod):
        given = given.__func__
    if isinstance(given, classmethod):
        raise ConfigurationError("@task is not for a @classmethod, its worker has no class: make it a @staticmethod")
    if not callable(given) or isinstance(given, type):
        raise ConfigurationError(f"@task is for functions, not for {repr_of(given)}")
    if hasattr(given, "send_options"):
        name = getattr(given, "name", None)
        raise ConfigurationError(f"@task is for functions, not for the task {name!r}: decorate its function once")
    return given  # type: ignore[no-any-return]


def name_of(function: Any) -> str:
    """Return the name of a function. Raises TaskNameError for a lambda, and for what has none."""
    found = getattr(function, "__name__", None)
    if not isinstance(found, str) or found == "<lambda>":
        what = "a lambda" if found == "<lambda>" else repr_of(function)
        raise TaskNameError(f"{what} has no name: give @task(name=...)")
    return found


def check_function(function: Any, name: str) -> None:
    """Raise ConfigurationError for a function that no worker could call.

    That is a generator function, one of an object that its worker does not have, and one without a signature.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"task {name!r} is a generator function: a task returns once")
    if inspect.isfunction(function) and _wants_object(function):
        raise ConfigurationError(
            f"task {name!r} is a method with a parameter {function.__code__.co_varnames[0]!r}, which its worker has "
            "not: make it a function or a @staticmethod, or give the method of an object: task(name=...)(mailer.send)"
        )
    if why := _why_no_signature(function):
        raise ConfigurationError(
            f"task {name!r}: the parameters of {repr_of(function)} cannot be read ({why}): write a function that "
            "calls it, with parameters of its own"
        )


def check_importable(function: Any, name: str) -> None:
    """Raise ConfigurationError for a function that a process cannot find by its module and name."""
    qualname = getattr(function, "__qualname__", None)
    if inspect.ismethod(function) or not isinstance(qualname, str) or "<" in qualname:
        raise ConfigurationError(
            f'task {name!r} has run_in="process", and a process cannot find {repr_of(function)} by its name: define it '
            "as a function at the top of a module"
        )


def written(function: Any) -> Any:
    """Return the function that somebody has written: that of a `functools.partial`, the `__call__` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    is_plain = inspect.isroutine(function) or hasattr(function, "__code__")
    return function if is_plain else getattr(function, "__call__", function)  # noqa: B004


def is_async(function: Any) -> bool:
    """Is this a coroutine function, or an object whose `__call__` is one?"""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(written(function))


def code_of(function: Any) -> CodeType:
    """Return the code of a function, or of what is written in C a code that is async if it is."""
    code = getattr(written(function), "__code__", None)
    return code if isinstance(code, CodeType) else (_async_code if is_async(function) else _sync_code).__code__


def annotations_of(function: Any) -> dict[str, Any]:
    """Return the annotations of a function, as they are; none if they cannot be had."""
    with suppress(Exception):  # Python 3.14 evaluates them: a name may be there for type checkers alone
        found = written(function).__annotations__
        if isinstance(found, dict):
            return found
    return {}


def found_by_name(module: Any, qualname: Any) -> Any:
    """Return what a module has by this name, None if it has nothing."""
    with suppress(ImportError, AttributeError, TypeError, ValueError):
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
        return found
    return None


def _why_no_signature(function: Any) -> str:
    """Return why the parameters of a function cannot be had. Empty if they can."""
    if inspect.isfunction(function) and not hasattr(function, "__signature__"):
        return ""  # its code has them
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:  # written in C, or a partial whose arguments do not fit
        return str_of(error)
    except Exception:  # noqa: BLE001 - Python 3.14 evaluates annotations: whoever reads them says so
        return ""
    return ""


def _wants_object(function: Any) -> bool:
    """Is this a function in the body of a class that wants its object, or its class?"""
    before, _, _ = function.__qualname__.rpartition(".")
    return bool(before) and not before.endswith("<locals>") and function.__code__.co_varnames[:1] in (
        ("self",), ("cls",)
    )  # fmt: skip


async def _async_code() -> None:
    """Is the code of what is async and has none."""


def _sync_code() -> None:
    """Is the code of what has none."""
