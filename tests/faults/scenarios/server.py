"""The server dies, forgets, freezes, and drops scripts and connections."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.harness import Scene
from tests.faults.producer import Kind
from tests.faults.registry import injector, scenario
from tests.faults.servers import AOF, Sabotage

MIXED = (
    Kind(task="noop", share=8),
    Kind(task="work", share=2, kwargs={"seconds": [0.0, 0.1]}),
    Kind(task="work", share=0.3, kwargs={"seconds": [0.5, 3.0]}),  # longer than a lease, some of them
    Kind(task="noop", share=1, options={"delay": [0.1, 2.0]}),
    Kind(task="flaky", share=1, kwargs={"fails": 1}),
)
LOAD = 6.0  # seconds that a load takes without faults

_TOLD = 0.4  # seconds in which producers have written down what was accepted
_MARGIN = 0.15  # seconds after a loss for which the checker forgives: nothing is accepted then


def under_load(
    scene: Scene, *kinds: Kind, workers: int = 3, seconds: float = LOAD, ids: tuple[bool, ...] = (True, False)
) -> None:
    """Start workers, and a producer for each of `ids`: does it give its tasks ids of their own?"""
    scene.start_many(workers)
    for number, own in enumerate(ids):
        total = (scene.tasks + number) // len(ids)
        load = scene.load(*(kinds or MIXED), total=total, ids=own, batch=20, rate=total / seconds)
        scene.produce(load)
    scene.until_count("effect", min(20, scene.tasks // 2))


def while_sending(scene: Scene, fault: Callable[[], Any], *, pause: tuple[float, float], least: int = 3) -> None:
    """Inject a fault again and again while the producers send, and at least so often."""
    done = 0
    while done < least or scene.sending():
        scene.sleep(scene.random.uniform(*pause))
        fault()
        done += 1


@contextlib.contextmanager
def unusable(scene: Scene) -> Iterator[None]:
    """The time in which nobody can use the server."""
    scene.note("down", "server")
    try:
        yield
    finally:
        scene.note("back", "server")


# --- killed -------------------------------------------------------------------------------------


@scenario("server-killed-aof", server=AOF, slack=3.0)
def server_killed_aof(scene: Scene) -> None:
    """SIGKILL the server under load and restart it with its file, synced at each write: nothing is lost."""
    under_load(scene)

    def fault() -> None:
        heal_killed(scene, inject_killed(scene, scene.random.uniform(0, 0.6)))

    while_sending(scene, fault, pause=(0.3, 1.2))
    scene.drain()


def heal_killed(scene: Scene, _what: Any) -> None:
    """Start it again, with its data."""
    Sabotage(scene.server).restart()
    scene.note("back", "server")


@injector("server-killed", group="server", server=AOF, lasts=(0.0, 2.0), slack=2.0, heal=heal_killed,
          excuses="server away; nothing lost, thanks to its append-only file")  # fmt: skip
def inject_killed(scene: Scene, away: float = 0.0) -> None:
    """SIGKILL."""
    scene.fault("server-killed")
    scene.note("down", "server")
    Sabotage(scene.server).kill()
    scene.sleep(away)


# --- emptied ------------------------------------------------------------------------------------


@scenario("server-emptied", slack=3.0)
def server_emptied(scene: Scene) -> None:
    """SIGKILL the server under load and restart it empty: what is accepted from then on runs."""
    under_load(scene)
    while_sending(scene, lambda: heal_emptied(scene, inject_emptied(scene)), pause=(0.8, 1.8), least=2)
    scene.drain()


def heal_emptied(scene: Scene, _what: Any) -> None:
    """Start it again, empty."""
    Sabotage(scene.server).restart_empty()
    scene.note("back", "server")


@injector("server-emptied", group="server", lasts=(0.0, 1.0), slack=2.0, wipes=True, weight=0.3, heal=heal_emptied,
          excuses="server away; what it had is lost")  # fmt: skip
def inject_emptied(scene: Scene) -> None:
    """SIGKILL; what was accepted by then is forgiven."""
    scene.fault("server-emptied")
    scene.note("down", "server")
    Sabotage(scene.server).kill()
    scene.sleep(_TOLD)
    scene.note("wiped", "server")
    scene.sleep(_MARGIN)


@scenario("flushall")
def flushall(scene: Scene) -> None:
    """FLUSHALL under load, with tasks sent in the same instant: those run."""
    under_load(scene)
    while_sending(scene, lambda: flush(scene), pause=(0.5, 1.5))
    scene.drain()


@injector("flushall", group="server", wipes=True, weight=0.3, excuses="what the server had is lost")
def flush(scene: Scene) -> None:
    """Remove everything between two writes; what producers want to send meanwhile comes right after.

    While writes wait, producers write down what was accepted, so it is known for each task on which
    side of the flush it was.
    """
    scene.fault("flushall")
    sabotage = Sabotage(scene.server)
    sabotage.pause_writes(10)
    scene.sleep(_TOLD)
    scene.note("wiped", "server")
    scene.sleep(_MARGIN)
    # In one piece, so nobody who waits comes between them.
    sabotage.commands(("CLIENT", "UNPAUSE"), ("FLUSHALL",))


# --- frozen -------------------------------------------------------------------------------------


@scenario("server-stopped", slack=3.0)
def server_stopped(scene: Scene) -> None:
    """SIGSTOP the server for longer than replies and leases may take."""
    under_load(scene, seconds=2 * LOAD)
    while_sending(scene, lambda: stopped(scene), pause=(0.5, 1.5))
    scene.drain()
    robbed = [record["task"] for record in scene.journal.records("reclaimed") if record["died"]]
    scene.expect("P5", "deliveries of the living, taken as if they were dead", len(robbed), None, *robbed[:5])


def stopped(scene: Scene) -> None:
    """Freeze the server: for a moment, beyond the reply timeout, or beyond the lease."""
    inject_stopped(scene)
    scene.sleep(scene.random.choice([0.3, 1.3, scene.lease * scene.random.uniform(1.1, 1.6)]))
    heal_stopped(scene, None)


def heal_stopped(scene: Scene, _what: Any) -> None:
    """SIGCONT."""
    Sabotage(scene.server).thaw()
    scene.note("back", "server")


@injector("server-stopped", group="server", lasts=(0.3, 3.0), slack=2.0, heal=heal_stopped,
          excuses="server away")  # fmt: skip
def inject_stopped(scene: Scene) -> None:
    """SIGSTOP."""
    scene.fault("server-stopped")
    scene.note("down", "server")
    Sabotage(scene.server).freeze()


# --- scripts and connections --------------------------------------------------------------------


@scenario("script-flush", limits={"effects_once": True})
def script_flush(scene: Scene) -> None:
    """SCRIPT FLUSH, over and over: nobody notices."""
    under_load(scene)
    while_sending(scene, lambda: flush_scripts(scene), pause=(0.0, 0.05), least=20)
    scene.drain()


@injector("script-flush", group="scripts", excuses="nothing")
def flush_scripts(scene: Scene) -> None:
    """Have the server forget every script."""
    scene.fault("script-flush")
    with contextlib.suppress(OSError):  # no server at the moment: the soak has other faults
        scene.command("SCRIPT", "FLUSH")


@scenario("client-kill")
def client_kill(scene: Scene) -> None:
    """CLIENT KILL in storms: all of a type, or one by its id."""
    under_load(scene)
    while_sending(scene, lambda: storm(scene), pause=(0.1, 0.6), least=5)
    scene.drain()


@injector("client-kill", group="connections", slack=1.0, excuses="connections lost; unknown outcomes")
def storm(scene: Scene) -> None:
    """End connections a few times within a moment."""
    sabotage = Sabotage(scene.server)
    for _ in range(scene.random.randint(1, 6)):
        scene.fault("client-kill")
        kind = scene.random.choice(["normal", "pubsub", "one"])
        with contextlib.suppress(OSError):
            if kind == "one":
                sabotage.kill_client(scene.random)
            else:
                sabotage.kill_clients(kind)
        scene.sleep(scene.random.uniform(0.0, 0.05))
