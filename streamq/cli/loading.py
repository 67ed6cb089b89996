"""Loads tasks, broker, middleware and lifespan from a module name (`app.tasks`, `app.tasks:send`, `app.py`).

Imports user code, so any error can happen here. Each becomes one line that names the file and line.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import streamq
from streamq.broker import RedisBroker
from streamq.cli.source_watch import current_directory, installed_folders, relative_name
from streamq.cli.usage_errors import CommandLineError
from streamq.consumer.events import Listener
from streamq.consumer.lifespan import check_lifespan
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import frames_of, str_of, type_name
from streamq.errors import ConfigurationError
from streamq.middleware.chain import MiddlewareChain, as_chain
from streamq.tasks.task import Task
from streamq.wire.argument_types import check_type
from streamq.worker import Lifespan

log = SafeLog("streamq.cli")

_PACKAGE = f"{Path(streamq.__file__).resolve().parent}/"
_INSTALLED = installed_folders()


class LoadingError(CommandLineError):
    """A module cannot be used. `files` are the source files involved; --reload watches them."""

    def __init__(self, message: str, files: Iterable[str] = ()) -> None:
        self.files = tuple(files)
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of the modules. `broker_path` and `lifespan_path` are dotted names.

    A SyncBroker of a module is here as a RedisBroker with its settings. `other_brokers` are the brokers that have
    another name than `broker`, as MODULE:NAME. None of them is used.
    """

    tasks: tuple[Task[Any, Any], ...]
    middleware: MiddlewareChain
    broker: RedisBroker | None = None
    broker_path: str = ""
    lifespan: Lifespan | None = None
    lifespan_path: str = ""
    other_brokers: tuple[str, ...] = ()


def load(specs: Iterable[str], *, folder: str | None = None, without_tasks: bool = False) -> Loaded:
    """Import modules and return their content. Raises LoadingError if one cannot be used.

    The current directory is importable, and `folder` before it. With `without_tasks` there need not be any task.
    """
    here = current_directory()
    if here is not None and "" not in sys.path and str(here) not in sys.path:
        sys.path.insert(0, str(here))
    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    found = [_LoadedModule.of(spec) for spec in specs]
    tasks: dict[int, Task[Any, Any]] = {id(task): task for each in found for task in each.tasks}
    for each in () if without_tasks else found:
        if not each.tasks and not each.extras:
            raise LoadingError(
                f"{each.spec} has no tasks: decorate a function with @task, or name the module that has some",
                _files_of(each.module),
            )
    if not (tasks or without_tasks):
        raise LoadingError(f"{', '.join(each.spec for each in found)}: no tasks; name a module that has some")
    broker_path, broker = _only_one("broker", found)
    broker = _for_event_loop(broker_path, broker)
    lifespan_path, lifespan = _only_one("lifespan", found)
    chains: dict[int, MiddlewareChain] = {
        id(each.extras["middleware"]): each.extras["middleware"] for each in found if "middleware" in each.extras
    }
    chain = MiddlewareChain(*(link for each in chains.values() for link in each))
    others = dict.fromkeys(name for each in found for name in each.other_brokers)
    return Loaded(tuple(tasks.values()), chain, broker, broker_path, lifespan, lifespan_path, tuple(others))


def load_listener(spec: str) -> Listener:
    """Import a listener, given as MODULE:NAME. Raises LoadingError if it cannot be used."""
    found = _load_function("--listener", spec, "app.metrics:on_event", "a function of one argument, an event")
    return cast("Listener", found)


def load_initializer(spec: str) -> Callable[[], object]:
    """Import what each process of handlers calls first, given as MODULE:NAME. Raises LoadingError as above."""
    found = _load_function("--process-initializer", spec, "app.tasks:prepare", "a function without arguments")
    return cast("Callable[[], object]", found)


def _load_function(option: str, spec: str, example: str, wanted: str) -> object:
    place, _, name = spec.partition(":")
    if not name:
        raise LoadingError(f"{option} {spec}: write MODULE:NAME, such as {example}")
    module = _import(place)
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        raise LoadingError(f"{option} {spec}: {module.__name__} has no {name!r}", _files_of(module)) from None
    if not callable(found):
        raise LoadingError(f"{option} {spec} is of type {type(found).__name__}: give {wanted}")
    return found


@dataclass(frozen=True, slots=True)
class _LoadedModule:
    """One imported module: its tasks, and the names in it that have a meaning. `picked` is the name of its broker."""

    spec: str
    module: ModuleType
    tasks: tuple[Task[Any, Any], ...]
    extras: dict[str, Any]
    picked: str = ""
    other_brokers: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: str) -> _LoadedModule:
        place, _, attribute = spec.partition(":")
        module = _import(place)
        try:
            if attribute and _is_broker(broker := vars(module).get(attribute)):
                extras = _extras(module) | {"broker": broker}
                return cls(spec, module, tuple(_tasks_in(vars(module).values())), extras, attribute)
            tasks = _tasks_at(spec, module, attribute) if attribute else _tasks_in(vars(module).values())
            others = () if attribute else _other_brokers(place, module)
            return cls(spec, module, tuple(tasks), _extras(module), other_brokers=others)
        except (LoadingError, KeyboardInterrupt):
            raise
        except BaseException as error:  # its objects run code of the user when they are asked for anything
            raise LoadingError(
                f"{spec} cannot be looked through for tasks: an object in it raised {type_name(error)}: "
                f"{str_of(error)}; name the tasks by themselves, as in app.tasks:send",
                [frame.filename for frame in _user_frames(error)],
            ) from error


def _tasks_in(values: Iterable[Any]) -> list[Task[Any, Any]]:
    return [value for value in values if _is(value, Task)]


def _other_brokers(place: str, module: ModuleType) -> tuple[str, ...]:
    return tuple(f"{place}:{name}" for name, one in vars(module).items() if name != "broker" and _is_broker(one))


def _is_broker(value: object) -> bool:
    """Is this a RedisBroker, or a SyncBroker? Nobody has one whose module was not imported: it need not be here."""
    known = sys.modules.get("streamq.sync.broker")
    return _is(value, RedisBroker) or (known is not None and _is(value, known.SyncBroker))


def _check_broker(value: Any) -> Any:
    return value if _is_broker(value) else check_type("broker", value, RedisBroker, "a RedisBroker or a SyncBroker")


def _for_event_loop(path: str, broker: Any) -> RedisBroker | None:
    """Return a broker that a worker can open: a SyncBroker says by its settings where the queue is.

    Raises LoadingError if its data are its own.
    """
    if broker is None or _is(broker, RedisBroker):
        return cast("RedisBroker | None", broker)
    from streamq.sync.broker import broker_for_workers  # noqa: PLC0415 - it is loaded already

    try:
        return broker_for_workers(broker)
    except ConfigurationError as error:
        raise LoadingError(f"{path}: {error}") from None


def _is(value: object, kind: type[Any]) -> bool:
    """Is this such an object, whatever its `__class__` says? That of a mock, or of a lazy proxy, says anything."""
    return issubclass(type(value), kind)


def _tasks_at(spec: str, module: ModuleType, attribute: str) -> list[Task[Any, Any]]:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            has = ", ".join(sorted(name for name, value in vars(module).items() if _is(value, Task)))
            raise LoadingError(f"{spec}: {module.__name__} has no {attribute!r}; its tasks are {has or 'none'}")
        found = getattr(found, part)
    if isinstance(found, Task):
        return [found]
    if isinstance(found, ModuleType):
        return _tasks_in(vars(found).values())
    if isinstance(found, list | tuple | set | frozenset) and found and all(isinstance(one, Task) for one in found):
        return list(found)
    kind = type(found).__name__
    raise LoadingError(f"{spec} is of type {kind}, not a task: decorate it with @task, or name a list of tasks")


# The names with a meaning in a module, and what checks their values as `Worker` does.
_MEANINGS: dict[str, Callable[[Any], Any]] = {
    "broker": _check_broker,
    "middleware": as_chain,
    "lifespan": check_lifespan,
}


def _extras(module: ModuleType) -> dict[str, Any]:
    """Return `broker`, `middleware` and `lifespan` of a module. Raises LoadingError for one of a wrong type.

    An imported module of that name is not meant, and a lazy proxy is passed over.
    """
    extras: dict[str, Any] = {}
    for name, check in _MEANINGS.items():
        value = vars(module).get(name)
        if value is None or not _has_class(value):
            continue
        if isinstance(value, ModuleType):
            if not value.__name__.startswith("streamq."):
                log.warning("%s.%s is a module, so the worker does not use it as its %s; import it under another name, "
                            "or import the %s in it", module.__name__, name, name, name,
                            event="module_ignored")  # fmt: skip
            continue
        try:
            extras[name] = check(value)
        except ConfigurationError as error:
            raise LoadingError(
                f"{module.__name__}.{error}; or give it another name, also on import (as ...), if it is not for the "
                f"worker, which uses what a module calls broker, middleware or lifespan",
                _files_of(module),
            ) from error
    return extras


def _has_class(value: object) -> bool:
    try:
        return isinstance(value.__class__, type)
    except Exception:  # noqa: BLE001 - that of a lazy proxy runs code of the user
        return False


def _only_one(name: str, found: Iterable[_LoadedModule]) -> tuple[str, Any]:
    """Return the dotted name and the value of this name. Raises LoadingError if two modules differ.

    A broker that was picked (`app:broker`) goes before those of modules that were named alone.
    """
    having = [each for each in found if name in each.extras]
    picked = [each for each in having if each.picked and name == "broker"]
    at, value = "", None
    for each in picked or having:
        here = f"{each.module.__name__}.{each.picked if picked else name}"
        if each.extras[name] is value:
            continue
        if value is not None:
            remedy = f"; pick one: {each.spec.partition(':')[0]}:broker" if name == "broker" and not picked else ""
            raise LoadingError(f"{at} and {here} differ: a worker has one {name}{remedy}")
        at, value = here, each.extras[name]
    return at, value


# --- importing -------------------------------------------------------------------------------


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") or (path.suffix == "" and "/" in place):
        return _import_path(path, place)
    if not all(part.isidentifier() for part in place.split(".")):
        raise LoadingError(f"{place!r} is not a module: write app.tasks, app.tasks:send or a path to app.py")
    return _import_name(place, place)


def _import_path(path: Path, place: str) -> ModuleType:
    """Import a file under its dotted name. The folder above its outermost package joins sys.path."""
    if not path.is_absolute() and current_directory() is None:
        raise LoadingError(f"{place}: the current directory has been removed; change to the folder that holds the file")
    path = path.resolve()
    if path.is_dir():
        path /= "__init__.py"
    if not path.is_file():
        raise LoadingError(f"{place}: no such file; give the path of a Python file, or the name of a module")
    parts = [] if path.stem == "__init__" else [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if not all(part.isidentifier() for part in parts):
        raise LoadingError(f"{place}: {'.'.join(parts)!r} cannot be imported under that name; rename the file")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = _import_name(".".join(parts), place)
    if module.__file__ is None or not path.samefile(module.__file__):
        raise LoadingError(f"{place} is shadowed by {module.__file__ or 'a built-in module'}: rename the file")
    return module


def _import_name(name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}.") and not _user_frames(error):
            here = current_directory() or "the current directory has been removed"
            raise LoadingError(
                f"no module {error.name!r} here ({here}): check the name, or change to the folder that holds it"
            ) from error
        raise _import_error(name, place, error) from error
    except BaseException as error:
        raise _import_error(name, place, error) from error


def _import_error(name: str, place: str, error: BaseException) -> LoadingError:
    """Return the error of a failed import with file and line."""
    frames = _user_frames(error)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(_INSTALLED)), None)
    last = last or (frames[-1] if frames else None)
    at = f"{relative_name(last.filename)}:{last.lineno}" if last is not None else place
    text = f"{error}"
    if isinstance(error, SyntaxError) and error.filename:
        at, text = f"{relative_name(error.filename)}:{error.lineno}", str(error.msg)
        frames.append(traceback.FrameSummary(error.filename, error.lineno, ""))
    if isinstance(error, SystemExit):
        text = f"{text} (the module calls exit on import: move the call under if __name__ == '__main__')"
    return LoadingError(
        f"{place} cannot be imported: {type(error).__name__}: {text} ({at}); "
        f"for the full traceback run python -c 'import {name}'",
        [frame.filename for frame in frames],
    )


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error in user code, innermost last."""
    return [
        frame
        for frame in traceback.extract_tb(frames_of(error))
        if not frame.filename.startswith(("<", _PACKAGE)) and frame.filename != importlib.__file__
    ]


def _files_of(module: ModuleType) -> list[str]:
    try:
        return [module.__file__] if module.__file__ else []
    except Exception:  # noqa: BLE001 - it may have put an object of its own in its place
        return []
