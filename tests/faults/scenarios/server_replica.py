"""The server is demoted under the workers, and another takes its place."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tests.faults.harness import Scene
from tests.faults.proxy import Proxy
from tests.faults.registry import injector, scenario
from tests.faults.scenarios.network import behind_a_proxy
from tests.faults.scenarios.server import MIXED, under_load, unusable, while_sending
from tests.faults.servers import Sabotage, replica_of, until
from tests.servers import RealServer

_PAUSE = 10.0  # seconds that writes may wait for the replica
_LAG = 0.3  # seconds that a replica may be behind


@scenario("readonly", slack=4.0)
def readonly(scene: Scene) -> None:
    """Primary and replica change places under the workers, who find them at one address: READONLY in between."""
    first = scene.server
    with replica_of(first) as second, behind_a_proxy(scene) as proxy:
        servers = [first, second]

        def fault() -> None:
            switch(scene, proxy, *servers)
            servers.reverse()

        try:
            under_load(scene, seconds=8)
            while_sending(scene, fault, pause=(0.5, 1.5), least=2)
        finally:
            if scene.server is not first:  # the rest of the harness looks at the first
                switch(scene, proxy, second, first)


def switch(scene: Scene, proxy: Proxy, primary: RealServer, replica: RealServer) -> None:
    """Promote the replica once it has everything, demote the primary, and show the way there somewhat later."""
    scene.fault("readonly")
    with unusable(scene):
        Sabotage(primary).pause_writes(_PAUSE)
        until(lambda: Sabotage(replica).in_step(primary), _PAUSE, "a replica that has everything")
        Sabotage(replica).lead()
        Sabotage(primary).follow(replica)
        Sabotage(primary).resume_writes()
        scene.sleep(scene.random.uniform(0.0, 1.5 * scene.lease))
        proxy.retarget(replica.socket)
    until(lambda: Sabotage(primary).in_step(replica), 20, "the old primary in step")
    scene.server = replica


@scenario("failover", slack=4.0)
def failover(scene: Scene) -> None:
    """The primary is killed and a replica that lags takes over: what was enqueued with durable="replica" is kept."""
    durable = [replace(kind, options={**kind.options, "durable": "replica"}) for kind in MIXED]
    first = scene.server
    with (
        replica_of(first) as second,
        Proxy(("127.0.0.1", Sabotage(first).listen()), seed=scene.seed) as link,
        behind_a_proxy(scene) as proxy,
    ):
        servers = [first, second]
        follow(link, *servers)

        def fault() -> None:
            take_over(scene, proxy, link, *servers)
            servers.reverse()

        try:
            under_load(scene, *durable, seconds=8)
            while_sending(scene, fault, pause=(1.0, 2.0), least=2)
        finally:
            if scene.server is not first:  # the rest of the harness looks at the first
                switch(scene, proxy, second, first)
    accepted = {record["task"] for record in scene.journal.records("accepted")}
    undone = sorted(accepted - scene.journal.effects().keys())
    scene.expect("P1", "durable tasks without effect", len(undone), 0, *undone[:5])


def follow(link: Proxy, primary: RealServer, replica: RealServer) -> None:
    """Have a replica follow its primary through a proxy."""
    link.retarget(("127.0.0.1", Sabotage(primary).listen()))
    Sabotage(replica).follow(primary, port=link.port)
    until(lambda: Sabotage(replica).in_step(primary), 20, "a replica in step")


def take_over(scene: Scene, proxy: Proxy, link: Proxy, primary: RealServer, replica: RealServer) -> None:
    """Kill the primary, promote the replica as it is, and have the old primary follow it.

    What the replica had not heard of is lost: acknowledgements too, so work is done again.
    """
    scene.fault("failover")
    before = time.monotonic()
    link.blackhole(requests=False, replies=True)
    scene.sleep(scene.random.uniform(0.0, 2 * _LAG))
    with unusable(scene):
        Sabotage(primary).kill()
        link.cut()
        link.heal()
        scene.sleep(scene.random.uniform(_LAG, scene.lease))
        scene.note("wiped", "server", since=before - _LAG)  # by now what it had said is heard, and written down
        Sabotage(replica).lead()
        proxy.retarget(replica.socket)
        scene.server = replica
    Sabotage(primary).restart()
    follow(link, replica, primary)


def promote(scene: Scene, _what: Any) -> None:
    """Make it a primary again."""
    Sabotage(scene.server).lead()
    scene.note("back", "server")


@injector("readonly", group="server", lasts=(0.2, 3.0), slack=2.0, heal=promote, excuses="server away")
def demote(scene: Scene) -> None:
    """Make the server the replica of nobody: its data stays, and every write is refused."""
    scene.fault("readonly")
    scene.note("down", "server")
    Sabotage(scene.server).commands(("REPLICAOF", "127.0.0.1", 1))
