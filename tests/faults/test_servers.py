"""The servers of the scenarios: each can be broken as it says, and goes on afterwards."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator

import anyio
import hiredis
import pytest

from streamq import RedisBroker
from streamq.errors import BrokerError
from tests.faults.servers import AOF, AOF_EVERYSEC, Sabotage, replica_of, until
from tests.servers import REAL_KINDS, Kind, RealServer, available, fresh_server

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=REAL_KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    if not available(request.param):
        pytest.skip(f"no {request.param}-server on PATH")
    return request.param


@pytest.fixture
def server(kind: Kind) -> Iterator[RealServer]:
    with fresh_server(kind, *AOF) as made:
        yield made


@pytest.fixture
def sabotage(server: RealServer) -> Sabotage:
    return Sabotage(server)


def said(reply: object) -> str:
    """The first word of an error."""
    assert isinstance(reply, hiredis.ReplyError), reply
    return str(reply).partition(" ")[0]


def test_killed_and_restarted_with_its_file(server, sabotage):
    """Every write that was answered is there, the last one too."""
    for round_ in range(1, 4):
        sabotage.commands(*[("RPUSH", "list", number) for number in range(50)])
        sabotage.kill()
        sabotage.restart()
        assert server.command("LLEN", "list") == 50 * round_


def test_restarted_empty(server, sabotage):
    """Nothing is there, and what is written from then on is kept."""
    server.command("SET", "a", "1")
    sabotage.restart_empty()
    assert server.keys() == []
    server.command("SET", "b", "1")
    sabotage.kill()
    sabotage.restart()
    assert server.keys() == ["b"]


@pytest.mark.slow
def test_frozen_and_thawed(server, sabotage):
    """A frozen server takes connections and does not answer; thawed, it does what it was asked."""
    sabotage.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.2)
        connection.connect(server.socket)
        connection.sendall(b"SET a 1\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        sabotage.thaw()
        connection.settimeout(5)
        assert connection.recv(100) == b"+OK\r\n"


def test_full_of_data(server, sabotage):
    """Writes that need memory are refused, and no others; with some to spare the first still succeed."""
    server.command("XADD", "a", "*", "x", "y")
    sabotage.fill()
    assert said(server.command("XADD", "a", "*", "x", "y")) == "OOM"
    assert server.command("XDEL", "a", "0-1") == 0
    assert server.command("XLEN", "a") == 1
    sabotage.empty()
    assert isinstance(server.command("XADD", "a", "*", "x", "y"), bytes)
    sabotage.fill(spare=2_000_000)
    assert isinstance(server.command("XADD", "a", "*", "x", "y"), bytes)


@pytest.mark.slow
def test_a_full_disk_refuses_writes(kind):
    """MISCONF, with the file synced every second: reads go on, and writes do after room was made."""
    with fresh_server(kind, *AOF_EVERYSEC) as server:
        sabotage = Sabotage(server)
        sabotage.harden()
        sabotage.fill_disk(spare=1000)
        replies = []

        def refused():  # a server puts a write off for two seconds while its thread syncs
            replies.append(server.command("RPUSH", "list", "x" * 100))
            return not isinstance(replies[-1], int)

        until(refused, 10, "a write that is refused")
        accepted = len(replies) - 1
        assert accepted > 0
        assert said(replies[-1]) == "MISCONF"
        assert server.command("LLEN", "list") == accepted
        sabotage.empty_disk()
        until(lambda: isinstance(server.command("RPUSH", "list", "x"), int), 5, "a write that is accepted")
        sabotage.kill()
        sabotage.restart()
        assert server.command("LLEN", "list") in (accepted, accepted + 1)  # the last one may not have been synced


@pytest.mark.slow
def test_a_full_disk_ends_a_server_that_syncs_always(server, sabotage):
    """It says so and ends; restarted with room on the disk, it has all that it answered for."""
    sabotage.harden()
    sabotage.fill_disk(spare=1000)
    answered = 0
    with contextlib.suppress(OSError):  # it ends while we wait, or before we ask
        while answered < 30:
            server.command("RPUSH", "list", "x" * 100)
            answered += 1
    until(sabotage.ended, 5, "the end of the server")
    assert "Can't recover from AOF write error" in sabotage.log()
    sabotage.restart()
    assert 0 < server.command("LLEN", "list") == answered


@pytest.mark.slow
def test_a_replica_is_promoted_and_the_primary_demoted(kind):
    """READONLY on the one, then on the other; the data moves along."""
    with fresh_server(kind) as primary, replica_of(primary) as replica:
        primary.command("SET", "a", "1")
        assert primary.command("WAIT", 1, 5000) == 1
        assert said(replica.command("SET", "b", "1")) == "READONLY"
        Sabotage(primary).pause_writes(10)
        until(lambda: Sabotage(replica).in_step(primary), 5, "a replica in step")
        Sabotage(replica).lead()
        Sabotage(primary).follow(replica)
        Sabotage(primary).resume_writes()
        assert replica.command("SET", "b", "1") == b"OK"
        assert said(primary.command("SET", "c", "1")) == "READONLY"
        until(lambda: Sabotage(primary).in_step(replica), 10, "the old primary in step")
        assert primary.keys() == ["a", "b"]


async def test_connections_are_killed(server, sabotage, anyio_backend):
    """By type, or one by its id; only those of streamq are drawn."""
    assert sabotage.kill_client(random.Random(1)) == 0
    async with RedisBroker(server.url) as broker:
        await broker.store.one(("PING",))
        (first,) = sabotage.clients()
        assert sabotage.kill_client(random.Random(1)) == 1
        await answered(broker)
        (second,) = sabotage.clients()
        assert sabotage.kill_clients("normal") >= 1
        assert sabotage.kill_clients("pubsub") == 0
        await answered(broker)
        assert len({first, second, *sabotage.clients()}) == 3


async def answered(broker: RedisBroker) -> None:
    """Ask until there is an answer: a broker learns that its connection is gone when it uses it."""
    with anyio.fail_after(5):
        while True:
            with contextlib.suppress(BrokerError):
                await broker.store.one(("PING",))
                return


def test_until_names_what_did_not_happen():
    """A poll that fails says for what it waited."""
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="a miracle"):
        until(lambda: False, 0.1, "a miracle")
    assert time.monotonic() - started < 5
