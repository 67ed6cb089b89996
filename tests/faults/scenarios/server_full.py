"""The server has no memory left, or no room on its disk."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio

from streamq import RedisBroker
from streamq.errors import BrokerError
from tests.faults.harness import Scene
from tests.faults.registry import injector, scenario
from tests.faults.scenarios.server import under_load, while_sending
from tests.faults.servers import AOF, AOF_EVERYSEC, Sabotage

_SPARE = 200_000  # bytes until the memory is full
_WORKED_OFF = 15.0  # seconds in which a full server's backlog is worked off


def refusal(scene: Scene) -> str:
    """Return why an enqueue is refused just now, `accepted` if it is not."""

    async def ask() -> str:
        async with RedisBroker(scene.server.url, connect_timeout=1, reply_timeout=1) as broker:
            try:
                await broker.enqueue("noop")
            except BrokerError as error:
                return f"{error.code}: {error}"
        return "accepted"

    return anyio.run(ask, backend=scene.backend)


def expect_refusal(scene: Scene, code: str) -> None:
    """Expect that an enqueue is refused now, and says so by the server's own word."""
    found = refusal(scene)
    scene.expect("P9", f"an enqueue that did not say {code}", int(code not in found), 0, found)


# --- memory -------------------------------------------------------------------------------------


@scenario("oom", limits={"effects_once": True})
def oom(scene: Scene) -> None:
    """No memory is left: an enqueue says so, what is there is worked off and settled, and later all goes on."""
    under_load(scene)
    while_sending(scene, lambda: full(scene), pause=(0.3, 1.0), least=2)
    scene.drain()
    scene.expect("-", "no enqueue was refused", int(not scene.count("refused")), 0)


def full(scene: Scene) -> None:
    """Be nearly full for a moment, so that memory comes and goes; then be full until nothing is left to do."""
    sabotage = Sabotage(scene.server)
    scene.fault("oom")
    sabotage.fill(_SPARE)
    scene.sleep(scene.random.uniform(0.2, 1.0))
    sabotage.fill(-(1 << 40))
    expect_refusal(scene, "OOM")
    took = scene.until(lambda: scene.left() == 0, 2 * _WORKED_OFF, "backlog of a full server that is worked off")
    scene.expect("P9", "working off a full server's backlog took (s)", took, _WORKED_OFF)
    sabotage.empty()


@injector("oom", group="server", lasts=(0.3, 3.0), heal=lambda scene, _: Sabotage(scene.server).empty(),
          excuses="enqueues refused")  # fmt: skip
def inject_oom(scene: Scene) -> None:
    """Use up all memory."""
    scene.fault("oom")
    with contextlib.suppress(OSError):
        Sabotage(scene.server).fill(scene.random.choice([0, _SPARE]))


# --- disk ---------------------------------------------------------------------------------------


@scenario("aof-disk-full", server=AOF_EVERYSEC, slack=3.0)
def aof_disk_full(scene: Scene) -> None:
    """The append-only file cannot grow: MISCONF until there is room; what was accepted is kept."""
    Sabotage(scene.server).harden()
    under_load(scene)

    def fault() -> None:
        inject_disk_full(scene)
        scene.until(lambda: not writable(scene), 10, "write that is refused")
        expect_refusal(scene, "MISCONF")
        scene.sleep(scene.random.uniform(0.2, 1.5 * scene.lease))
        heal_disk_full(scene, None)

    while_sending(scene, fault, pause=(0.3, 1.2), least=2)
    scene.drain()


def writable(scene: Scene) -> bool:
    """Does the server accept a write?"""
    return bool(scene.command("SET", "probe", 1, "PX", 10) == b"OK")


def inject_disk_full(scene: Scene) -> None:
    """Leave a few kilobytes for the file."""
    scene.fault("aof-disk-full")
    scene.note("down", "server")
    Sabotage(scene.server).fill_disk(scene.random.randint(0, 8000))


def heal_disk_full(scene: Scene, _what: Any) -> None:
    """Make room; the server tries again once a second."""
    Sabotage(scene.server).empty_disk()
    scene.until(lambda: writable(scene), 10, "write that is accepted")
    scene.note("back", "server")


@scenario("aof-disk-full-always", server=AOF, slack=3.0)
def aof_disk_full_always(scene: Scene) -> None:
    """With the file synced at each write a full disk ends the server; what was accepted is there when it is back."""
    under_load(scene)

    def fault() -> None:
        inject_disk_full_always(scene)
        scene.until(Sabotage(scene.server).ended, 10, "end of a server without disk")
        scene.sleep(scene.random.uniform(0, 0.5))
        heal_disk_full_always(scene, None)

    while_sending(scene, fault, pause=(0.5, 1.5), least=2)
    scene.drain()


def heal_disk_full_always(scene: Scene, _what: Any) -> None:
    """Start it again, with its data and with room."""
    Sabotage(scene.server).restart()
    scene.note("back", "server")


@injector(
    "aof-disk-full",
    group="server",
    server=AOF,
    lasts=(0.3, 2.0),
    slack=2.0,
    weight=0.5,
    heal=heal_disk_full_always,
    excuses="server away; nothing lost",
)
def inject_disk_full_always(scene: Scene) -> None:
    """Leave a few kilobytes for the file; the server ends itself when they are used up."""
    inject_disk_full(scene)
