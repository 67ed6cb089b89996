"""From what was typed (`app.tasks`, `app.tasks:send`, `app.py`) to tasks, broker, middleware and lifespan.

Imports the user's code, so everything may go wrong here; each way is one line that names the place.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from streamq.broker import RedisBroker
from streamq.cli.source_watch import short
from streamq.cli.usage_errors import Problem
from streamq.middleware import MiddlewareChain
from streamq.tasks.task import Task
from streamq.worker import Lifespan

_OWN = str(Path(__file__).resolve().parent)


class LoadingProblem(Problem):
    """A module cannot be used. `files` are the sources that were involved, to be watched by --reload."""

    def __init__(self, message: str, files: Iterable[str] = ()) -> None:
        self.files = tuple(files)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the modules hold. `broker_at` says where the broker was found."""

    tasks: tuple[Task[Any, Any], ...]
    middleware: MiddlewareChain
    broker: RedisBroker | None = None
    broker_at: str = ""
    lifespan: Lifespan | None = None


def load(specs: Iterable[str]) -> Loaded:
    """Import modules and return what they hold. Raises LoadingProblem, one line each."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = [_Found.of(spec) for spec in specs]
    tasks: dict[int, Task[Any, Any]] = {id(task): task for each in found for task in each.tasks}
    for each in found:
        if not each.tasks and not each.extras:
            raise LoadingProblem(
                f"{each.spec} has no tasks: decorate a function with @task, or name the module that has some",
                _files_of(each.module),
            )
    if not tasks:
        raise LoadingProblem(f"{', '.join(each.spec for each in found)}: no tasks; name a module that has some")
    broker_at, broker = _single("broker", found)
    _, lifespan = _single("lifespan", found)
    chains: dict[int, MiddlewareChain] = {
        id(each.extras["middleware"]): each.extras["middleware"] for each in found if "middleware" in each.extras
    }
    chain = MiddlewareChain(*(link for each in chains.values() for link in each))
    return Loaded(tuple(tasks.values()), chain, broker, broker_at, lifespan)


@dataclass(frozen=True, slots=True)
class _Found:
    """One module and what is in it."""

    spec: str
    module: ModuleType
    tasks: tuple[Task[Any, Any], ...]
    extras: dict[str, Any]

    @classmethod
    def of(cls, spec: str) -> _Found:
        place, _, attribute = spec.partition(":")
        module = _import(place)
        tasks = _tasks_at(spec, module, attribute) if attribute else _tasks_in(vars(module).values())
        return cls(spec, module, tuple(tasks), _extras(module))


def _tasks_in(values: Iterable[Any]) -> list[Task[Any, Any]]:
    return [value for value in values if isinstance(value, Task)]


def _tasks_at(spec: str, module: ModuleType, attribute: str) -> list[Task[Any, Any]]:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            has = ", ".join(sorted(name for name, value in vars(module).items() if isinstance(value, Task)))
            raise LoadingProblem(f"{spec}: {module.__name__} has no {attribute!r}; its tasks are {has or 'none'}")
        found = getattr(found, part)
    if isinstance(found, Task):
        return [found]
    if isinstance(found, ModuleType):
        return _tasks_in(vars(found).values())
    if isinstance(found, list | tuple | set | frozenset) and found and all(isinstance(one, Task) for one in found):
        return list(found)
    kind = type(found).__name__
    raise LoadingProblem(f"{spec} is of type {kind}, not a task: decorate it with @task, or name a list of tasks")


def _extras(module: ModuleType) -> dict[str, Any]:
    """Return the names with a meaning that the module defines, checked for their kind."""
    extras: dict[str, Any] = {}
    values = vars(module)
    if isinstance(values.get("broker"), RedisBroker):
        extras["broker"] = values["broker"]
    if isinstance(values.get("middleware"), MiddlewareChain):
        extras["middleware"] = values["middleware"]
    lifespan = values.get("lifespan")
    if inspect.isasyncgenfunction(lifespan):
        raise LoadingProblem(
            f"{module.__name__}.lifespan is an async generator: decorate it with @contextlib.asynccontextmanager"
        )
    if inspect.isroutine(lifespan):
        extras["lifespan"] = lifespan
    return extras


def _single(name: str, found: Iterable[_Found]) -> tuple[str, Any]:
    """Return the one object of this name among the modules, and where it is."""
    at, value = "", None
    for each in found:
        if name not in each.extras or each.extras[name] is value:
            continue
        if value is not None:
            raise LoadingProblem(f"{at} and {each.module.__name__}.{name} differ: a worker has one {name}")
        at, value = f"{each.module.__name__}.{name}", each.extras[name]
    return at, value


# --- importing -------------------------------------------------------------------------------


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") or (path.suffix == "" and "/" in place):
        return _import_path(path, place)
    if not all(part.isidentifier() for part in place.split(".")):
        raise LoadingProblem(f"{place!r} is no module: write app.tasks, app.tasks:send or a path to app.py")
    return _import_name(place, place)


def _import_path(path: Path, place: str) -> ModuleType:
    """Import a file under the name it has in its package, the folder above that being importable."""
    path = path.resolve()
    if path.is_dir():
        path /= "__init__.py"
    if not path.is_file():
        raise LoadingProblem(f"{place}: no such file; give the path of a Python file, or the name of a module")
    parts = [] if path.stem == "__init__" else [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if not all(part.isidentifier() for part in parts):
        raise LoadingProblem(f"{place}: {'.'.join(parts)!r} cannot be imported under this name; rename the file")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = _import_name(".".join(parts), place)
    if module.__file__ is None or not path.samefile(module.__file__):
        raise LoadingProblem(f"{place} is hidden by {module.__file__ or 'a built-in module'}: rename the file")
    return module


def _import_name(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}.") and not _frames(error):
            raise LoadingProblem(
                f"no module {error.name!r} here ({Path.cwd()}): check the name, or change to the folder that holds it"
            ) from error
        raise _failed(name, place, error) from error
    except BaseException as error:
        raise _failed(name, place, error) from error


def _failed(name: str, place: str, error: BaseException) -> LoadingProblem:
    """Say what went wrong inside a module, and in which line."""
    frames = _frames(error)
    at = f"{short(frames[-1].filename)}:{frames[-1].lineno}" if frames else place
    text = f"{error}"
    if isinstance(error, SyntaxError) and error.filename:
        at, text = f"{short(error.filename)}:{error.lineno}", str(error.msg)
        frames.append(traceback.FrameSummary(error.filename, error.lineno, ""))
    if isinstance(error, SystemExit):
        text = f"{text} (it calls exit when it is imported: put that under if __name__ == '__main__')"
    return LoadingProblem(
        f"{place} cannot be imported: {type(error).__name__}: {text} ({at}); "
        f"see all of it with python -c 'import {name}'",
        [frame.filename for frame in frames],
    )


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return where an error passed through the user's code, innermost last."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", _OWN)) and frame.filename != importlib.__file__
    ]


def _files_of(module: ModuleType) -> list[str]:
    return [module.__file__] if module.__file__ else []
