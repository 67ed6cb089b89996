"""The soak: faults drawn at random, several at a time, while producers keep a bounded backlog.

It ends when everything is sent and worked off, or when its time is over: then what was sent by then is
worked off. Faults that make the server forget are left out unless they are asked for by name, because
everything is forgiven that was accepted before one of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tests.faults.harness import Scene
from tests.faults.producer import Kind
from tests.faults.registry import INJECTORS, Injector, Scenario, load

WORKERS = 4
PAUSE = (0.5, 4.0)  # seconds between two faults
CALM = 3.0  # seconds at the beginning in which there is none
_BACKLOG = 5000
_TICK = 0.05
_LAST = 180.0  # seconds for the rest of the work, once there are no more faults
_BURIED = 1000  # crashes: so many kills from outside must not look like a deadly task

LOAD = (
    Kind(task="noop", share=90),
    Kind(task="work", share=4, kwargs={"seconds": [0.0, 0.3]}),
    Kind(task="work", share=0.1, kwargs={"seconds": [2.0, 5.0]}),
    Kind(task="threaded", share=0.5, kwargs={"seconds": [0.0, 0.05]}),
    Kind(task="flaky", share=2, kwargs={"fails": 1}),
    Kind(task="late_failure", share=0.5, kwargs={"seconds": [0.1, 1.0]}),
    Kind(task="noop", share=3, options={"delay": [0.1, 3.0]}),
)


def chosen(names: Sequence[str] | None) -> list[Injector]:
    """Return the injectors of these names; all that do not wipe the server if none are given. Raises LookupError."""
    load()
    if names is None:
        return [injector for injector in INJECTORS.values() if not injector.wipes]
    unknown = [name for name in names if name not in INJECTORS]
    if unknown:
        raise LookupError(f"no faults {', '.join(unknown)}; there are {', '.join(INJECTORS)}")
    return [INJECTORS[name] for name in names]


def soak(*, minutes: float, names: Sequence[str] | None = None) -> Scenario:
    """Return a soak as a scenario, to be run as any other."""
    injectors = chosen(names)
    server = tuple(dict.fromkeys(injector.server for injector in injectors if injector.server))
    if len(server) > 1:
        raise LookupError(f"these faults want different servers: {server}")
    arguments = ("--minutes", f"{minutes:g}", *(("--faults", ",".join(names)) if names else ()))
    slack = 2.0 + max((injector.slack for injector in injectors), default=0.0)

    def body(scene: Scene) -> None:
        _Soak(scene, injectors, seconds=minutes * 60).run()

    return Scenario(
        name="soak", body=body, summary="Faults drawn at random, several at a time.", lease=2.0, slack=slack,
        server=server[0] if server else (), limits={"recovery": None}, arguments=arguments,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Active:
    """A fault that goes on until `until`."""

    injector: Injector
    what: Any
    until: float


class _Soak:
    """One soak in progress."""

    def __init__(self, scene: Scene, injectors: Sequence[Injector], *, seconds: float) -> None:
        self._scene = scene
        self._injectors = injectors
        self._over = time.monotonic() + seconds
        self._next = time.monotonic() + CALM
        self._active: list[Active] = []
        self._started = 0
        self._direct = scene.url

    def run(self) -> None:
        """Inject faults until the time is over or all is sent, then have the rest worked off."""
        scene = self._scene
        with _between(scene, self._injectors):
            self._replace()
            half = scene.tasks // 2
            for url, total in ((self._direct, half), (scene.url, scene.tasks - half)):
                scene.produce(scene.load(*LOAD, total=total, batch=200, backlog=_BACKLOG, cancel=0.1), url=url)
            while time.monotonic() < self._over and scene.sending():
                self._tick()
                scene.sleep(_TICK)
            self._heal(float("inf"))
            for producer in scene.producers:
                producer.terminate()
            scene.drain(_LAST, meanwhile=self._replace)
            scene.reap()
            scene.stop()

    def _tick(self) -> None:
        now = time.monotonic()
        self._heal(now)
        self._replace()
        if now >= self._next:
            self._inject()
            self._next = time.monotonic() + self._scene.random.uniform(*PAUSE)

    def _inject(self) -> None:
        """Draw a fault: of a group of which there is none now, but of the workers any number."""
        busy = {active.injector.group for active in self._active}
        free = [one for one in self._injectors if one.group not in busy or one.group == "workers"]
        if not free:
            return
        uniform = self._scene.random
        (injector,) = uniform.choices(free, [one.weight for one in free])
        what = None
        with contextlib.suppress(OSError):  # no server to do it to
            what = injector.inject(self._scene)
        self._active.append(Active(injector, what, time.monotonic() + uniform.uniform(*injector.lasts)))

    def _heal(self, now: float) -> None:
        for active in [active for active in self._active if active.until <= now]:
            self._active.remove(active)
            active.injector.heal(self._scene, active.what)

    def _replace(self) -> None:
        """Keep the crew complete: every other worker reaches the server through the proxy."""
        while len(self._scene.members) < WORKERS:
            self._started += 1
            url = self._scene.url if self._started % 2 else self._direct
            self._scene.start(wait=False, url=url, max_crashes=_BURIED)


def _between(scene: Scene, injectors: Sequence[Injector]) -> AbstractContextManager[Any]:
    """A proxy, if one of the faults wants one."""
    if not any(injector.name.startswith("proxy-") for injector in injectors):
        return nullcontext()
    from tests.faults.scenarios.network import proxied

    return proxied(scene)
