"""What there is to run: scenarios and injectors, by name. Knows neither servers nor processes.

A scenario is a function that is given a `Scene` and drives it. An injector is one fault that can
be put into a run under load and taken out again; the soak draws from all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.harness import Scene

Body = Callable[["Scene"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named scenario, and what its runs are measured by.

    `tasks` is how many tasks a run has unless told otherwise; `short` how many in the tests.
    `lease` (s) is the visibility timeout of its workers; `slack` (s) is what a loaded machine and the
    start of a process may add to any bound; `bound` (s) is the worst recovery that is allowed, beyond
    lease * 4/3 + slack if it is given. `server` are arguments of the server. `dead` are the reasons
    that tasks may die for, `culprits` the names of the tasks that may die as crash loops.
    """

    name: str
    body: Body
    summary: str
    tasks: int = 3000
    short: int = 600
    lease: float = 1.5
    slack: float = 3.0
    bound: float | None = None
    server: tuple[str, ...] = ()
    dead: frozenset[str] = frozenset()
    culprits: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()  # of the command line, beside the usual ones
    limits: dict[str, Any] = field(default_factory=dict)  # further fields of streamq.testing's Limits


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, **settings: Any) -> Callable[[Body], Body]:
    """Register a scenario: `@scenario("worker-killed", tasks=5000)`; its docstring is its summary."""

    def register(body: Body) -> Body:
        summary = (body.__doc__ or "").strip().partition("\n")[0]
        for sets in ("dead", "culprits"):
            settings[sets] = frozenset(settings.get(sets, ()))
        SCENARIOS[name] = Scenario(name=name, body=body, summary=summary, **settings)
        return body

    return register


@dataclass(frozen=True, slots=True)
class Injector:
    """One fault of the soak.

    `inject(scene)` puts it in and returns what `heal(scene, that)` needs to take it out; it lasts
    `lasts` (shortest, longest) seconds in between, and while it does no other of the same
    `group` is put in. `wipes` says that it forgets the server's data: then what was accepted is forgiven.
    `server` are arguments that the server needs for it; `weight` is how often it is drawn.
    `excuses` says in words what may happen because of it. `slack` (s) is what it may add to a recovery.
    """

    name: str
    inject: Callable[[Scene], Any]
    heal: Callable[[Scene, Any], None]
    excuses: str
    group: str
    lasts: tuple[float, float] = (0.0, 0.0)
    server: tuple[str, ...] = ()
    weight: float = 1.0
    wipes: bool = False
    slack: float = 0.0


INJECTORS: dict[str, Injector] = {}


def _nothing(_scene: Scene, _what: Any) -> None:
    """Healed by itself."""


def injector(
    name: str, *, excuses: str, group: str, heal: Callable[[Scene, Any], None] = _nothing, **settings: Any
) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    """Register an injector: `@injector("kill", group="workers", excuses="...", heal=..., lasts=(0.1, 1))`."""

    def register(inject: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        INJECTORS[name] = Injector(name, inject, heal, excuses, group, **settings)
        return inject

    return register


def load() -> None:
    """Import every module of `tests.faults.scenarios`, which registers what it has."""
    package = importlib.import_module("tests.faults.scenarios")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.faults.scenarios.{module.name}")


def find(name: str, **changes: Any) -> Scenario:
    """Return a scenario, with some of its settings replaced. Raises LookupError with the names there are."""
    load()
    if name not in SCENARIOS:
        raise LookupError(f"no scenario {name!r}; there are {', '.join(sorted(SCENARIOS))}")
    return replace(SCENARIOS[name], **changes)
