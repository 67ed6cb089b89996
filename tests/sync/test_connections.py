"""Connections that break, servers that go away, forks, interrupts: nothing is sent twice by itself, or lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import redis.exceptions

from streamq import SyncBroker, task
from streamq.client import Address, OutcomeUnknown
from streamq.client.sync_client import SyncClient
from streamq.errors import BrokerError, BrokerUnavailableError, ConfigurationError, OutcomeUnknownError
from streamq.sync.drive import run_now
from tests.client.conftest import Process
from tests.client.test_servers import certificate
from tests.faults.proxy import Proxy
from tests.sync.conftest import working

pytestmark = [pytest.mark.timeout(60), pytest.mark.paired]


@task(result_ttl=60)
def double(number: int) -> int:
    return 2 * number


@task(result_ttl=60)
def slowly(number: int) -> int:
    time.sleep(0.6)
    return number


@pytest.fixture
def proxy(real_server):
    with Proxy(real_server.socket) as proxy:
        yield proxy


@pytest.fixture
def broker(proxy):
    with SyncBroker(proxy.url, connect_timeout=2, reply_timeout=2) as broker:
        yield broker


def lengths(broker: SyncBroker, server) -> int:
    return sum(server.command("XLEN", keys.stream) for keys in broker.keys.tiers)


# --- lost replies ---------------------------------------------------------------------------------


def test_a_lost_reply_is_an_unknown_outcome_and_the_same_id_is_accepted_once(real_server, proxy, broker):
    """The task was accepted; it is never sent again by itself, and sent again by hand it is one task."""
    call = double.options(task_id="once").call(1)
    broker.enqueue(double.options(task_id="another"), 1)  # the server knows the script now
    proxy.lose_replies()
    with pytest.raises(OutcomeUnknownError) as caught:
        broker.enqueue(call)
    assert caught.value.task_id == "once"
    assert lengths(broker, real_server) == 2
    proxy.lose_replies(0.0)
    again = broker.enqueue(call)
    assert (again.fresh, again.task_id, lengths(broker, real_server)) == (False, "once", 2)


def test_many_threads_lose_replies_and_nothing_is_doubled(real_server, proxy, broker):
    """Each thread repeats what is unknown with its id, until it is accepted."""
    broker.client.ping()
    proxy.lose_replies(0.2)

    def send(number: int) -> bool:
        for _ in range(50):
            try:
                broker.enqueue(double.options(task_id=f"n{number}"), number)
            except (OutcomeUnknownError, BrokerUnavailableError):
                continue
            return True
        return False

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(send, range(60)))
    assert proxy.counts["lost replies"] > 0
    assert lengths(broker, real_server) == 60


def test_a_connection_that_the_server_closed_while_idle_is_replaced(real_server):
    """The next call notices it before it sends: no error."""
    with SyncBroker(real_server.url) as broker:
        broker.enqueue(double, 1)
        for _ in range(3):
            real_server.command("CLIENT", "KILL", "TYPE", "normal")
            assert broker.enqueue(double, 2).fresh
        assert lengths(broker, real_server) == 4


def test_connections_that_a_burst_has_left_idle_are_closed(real_server, monkeypatch):
    """One with each call that follows; the one that is used stays."""
    with SyncBroker(real_server.url) as broker:
        pool = broker._broker.sync_client.pool
        taken = [pool.take() for _ in range(5)]
        for connection in taken:
            connection.exchange(b"PING\r\n", 1)
            pool.give_back(connection)
        assert len(pool._open) == 5
        monkeypatch.setattr("streamq.client.sync_client._IDLE", 0.05)
        time.sleep(0.1)
        for _ in range(8):
            broker.client.ping()
        assert pool._open == {taken[-1]} == set(pool._idle)


def test_a_reply_in_pieces_is_put_together(proxy, broker):
    """And a large one is read whole."""
    proxy.split(7)
    broker.client.set("large", b"x" * 5000)
    assert broker.client.get("large") == b"x" * 5000


def test_a_request_that_is_cut_in_the_middle_has_an_unknown_outcome(proxy, broker):
    """A part of it was sent."""
    broker.client.ping()
    proxy.cut_after(1000, replies=False)
    with pytest.raises(redis.exceptions.ConnectionError):
        broker.client.set("large", b"x" * 10_000_000)
    assert broker.client.get("large") is None


# --- servers that are away ------------------------------------------------------------------------


def test_a_server_that_comes_back_is_waited_for(proxy, broker):
    """What was not sent waits for the next connection."""
    broker.client.ping()
    proxy.refuse()
    proxy.cut()
    threading.Timer(0.4, proxy.accept).start()
    begun = time.monotonic()
    assert broker.enqueue(double, 1).fresh
    assert 0.3 < time.monotonic() - begun < 2


def test_a_server_that_stays_away_is_an_error_after_the_connect_timeout(proxy):
    """With what the last attempt said."""
    with SyncBroker(proxy.url, connect_timeout=0.5) as broker:
        broker.client.ping()
        proxy.refuse()
        proxy.cut()
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.5 s; the last attempt: "):
            broker.enqueue(double, 1)
        assert 0.4 < time.monotonic() - begun < 1.5


def test_a_silent_server_is_an_error_after_the_reply_timeout(proxy):
    """A silent connection is closed: its late reply reaches nobody."""
    with SyncBroker(proxy.url, reply_timeout=0.3, connect_timeout=0.3) as broker:
        broker.client.ping()
        proxy.blackhole(requests=False)
        with pytest.raises(OutcomeUnknownError, match=r"no reply within 0\.3 s"):
            broker.enqueue(double.options(task_id="silent"), 1)
        proxy.heal()
        assert broker.client.echo("mine") == b"mine"


def test_a_wait_for_a_result_outlives_an_outage_and_ends_in_time(real_server, proxy, broker, backend):
    """The timeout counts whatever the server does; what is there afterwards is found."""
    handle = broker.enqueue(double, 4)
    proxy.blackhole()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.3)
    assert time.monotonic() - begun < 2
    proxy.heal()
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(handle.result, 20)
        time.sleep(0.2)
        proxy.refuse()
        proxy.cut()
        with working(real_server.url, double, backend=backend):
            time.sleep(0.3)
            assert not wait.done()
            proxy.accept()
            assert wait.result(10) == 8


def test_a_user_that_may_not_subscribe_still_gets_results(real_server, backend):
    """They are looked for, and the log says so once."""
    real_server.command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "resetchannels")
    url = real_server.url.replace("unix://", "unix://app:pw@")
    try:
        with (
            SyncBroker(url) as broker,
            working(real_server.url, double, slowly, backend=backend),
            ThreadPoolExecutor(1) as threads,
        ):
            wait = threads.submit(broker.enqueue(slowly, 3).result, 10)
            assert [broker.enqueue(double, n).result(10) for n in range(2)] == [0, 2]
            assert wait.result() == 3
    finally:
        real_server.command("ACL", "DELUSER", "app")


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_passwords_databases_and_tls_are_those_of_the_url(tls, tmp_path):
    """As the async client reads them; a wrong password or protocol is an error at once, with the remedy."""
    options, files, query = (), (), ""
    if tls:
        key, crt = certificate(tmp_path)
        files = ("--tls-cert-file", str(crt), "--tls-key-file", str(key), "--tls-ca-cert-file", str(crt))
        options, query = ("--tls-auth-clients", "no"), f"?ssl_ca_certs={quote(str(crt))}"
    try:
        process = Process("redis", "--requirepass", "p@ss", *files, *options, tls=tls)
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {error}")
    scheme, other = ("rediss", "redis") if tls else ("redis", "rediss")
    with contextlib.closing(process):
        place = f"localhost:{process.port}"
        with SyncBroker(f"{scheme}://:p%40ss@{place}/3{query}") as broker:
            for number in range(5):
                assert broker.enqueue(double, number).fresh
            assert broker.client.set("large", b"x" * 300_000) is True
            assert broker.client.get("large") == b"x" * 300_000
            assert int(broker.client.info("keyspace")["db3"]["keys"]) == 2
            assert b"name=streamq" in broker.client.command("CLIENT", "LIST")
            assert broker._broker.sync_client.pool._open.__len__() == 1
        assert "write the user and the password into the URL" in refusal(f"{scheme}://:wrong@{place}{query}")
        assert "in place of" in refusal(f"{other}://:p%40ss@{place}")
        if tls:
            assert "ssl_ca_certs=FILE" in refusal(f"rediss://:p%40ss@{place}")
            with SyncBroker(f"rediss://:p%40ss@{place}?ssl_cert_reqs=none") as broker:
                assert broker.enqueue(double, 1).fresh


def refusal(url: str) -> str:
    """Return the error of a server that cannot be used at this URL. It comes at once."""
    begun = time.monotonic()
    with SyncBroker(url, connect_timeout=1) as broker, pytest.raises(BrokerError) as caught:
        broker.enqueue(double, 1)
    assert time.monotonic() - begun < 3
    return str(caught.value)


def test_what_is_no_server_is_named():
    """Another server, a socket that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                with listener.accept()[0] as peer:
                    peer.recv(1000)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert "does not answer as a Redis or Valkey server does" in refusal(
            f"redis://127.0.0.1:{listener.getsockname()[1]}"
        )
    assert "No such file" in refusal("unix:///nowhere/at/all")


# --- failovers ------------------------------------------------------------------------------------


def test_a_connection_to_a_server_that_became_a_replica_is_given_up(real_server):
    """READONLY is raised, and the next call connects anew."""
    with SyncBroker(real_server.url) as broker:
        first = broker.client.command("CLIENT", "ID")
        real_server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(BrokerError) as caught:
                broker.enqueue(double, 1)
            assert caught.value.code == "READONLY"
        finally:
            real_server.command("REPLICAOF", "NO", "ONE")
        assert broker.client.command("CLIENT", "ID") != first
        assert broker.enqueue(double, 1).fresh


def test_scripts_that_the_server_has_forgotten_are_sent_with_their_source(real_server):
    """After a restart, say."""
    with SyncBroker(real_server.url) as broker:
        assert broker.enqueue(double.options(delay=60), 1).fresh
        real_server.command("SCRIPT", "FLUSH")
        assert broker.enqueue(double.options(delay=60), 2).fresh
        assert len(list(broker.scheduled())) == 2


def test_durable_tasks_are_confirmed(real_server):
    """WAIT runs on the connection of its caller alone."""
    from streamq.errors import NotDurableError

    with SyncBroker(real_server.url, reply_timeout=0.7) as broker, pytest.raises(NotDurableError):
        broker.enqueue(double.options(durable="replica"), 1)
    assert real_server.command("XLEN", broker.keys.tiers[1].stream) == 1


# --- forks ----------------------------------------------------------------------------------------


def _in_child(function) -> int:
    """Run a function in the child of a fork, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = int(function() or 0)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_child_of_a_fork_connects_anew(real_server):
    """The sockets of the parent are closed there; both go on, at the same time."""
    with SyncBroker(real_server.url) as broker:
        parent = broker.client.command("CLIENT", "ID")
        handle = broker.enqueue(double, 1)

        def child() -> int:
            if broker._broker.sync_client.pool._open:
                return 2
            if broker.client.command("CLIENT", "ID") == parent:
                return 3
            for number in range(50):
                broker.enqueue(double, number)
            return 0 if handle.status() == "queued" else 4

        assert [_in_child(child) for _ in range(2)] == [0, 0]
        assert broker.client.command("CLIENT", "ID") == parent
        assert lengths(broker, real_server) == 101


def test_a_fork_while_threads_send_gives_the_child_no_reply_of_theirs(real_server):
    """Threads of the parent hold connections and locks at that moment."""
    with SyncBroker(real_server.url) as broker:
        broker.enqueue(double, 0)
        end = threading.Event()
        sent: list[int] = []

        def send() -> None:
            while not end.is_set():
                broker.enqueue(double, 1)
                sent.append(1)

        def child() -> int:
            texts = [b"child %d" % number for number in range(50)]
            return 0 if [broker.client.echo(text) for text in texts] == texts else 2

        threads = [threading.Thread(target=send) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert [_in_child(child) for _ in range(5)] == [0] * 5
        finally:
            end.set()
            for thread in threads:
                thread.join()
        assert lengths(broker, real_server) == len(sent) + 1


def test_memory_is_no_server_for_a_child():
    """Its data are in the parent: the child is told what to use."""
    with SyncBroker("memory://") as broker:
        broker.enqueue(double, 1)

        def child() -> int:
            try:
                broker.enqueue(double, 2)
            except ConfigurationError as error:
                return 0 if "embedded:///path" in str(error) else 3
            return 2

        assert _in_child(child) == 0
        assert broker.monitor().snapshot().depth == 1


def test_an_embedded_server_starts_with_the_first_call_and_ends_with_the_broker():
    """A child uses the server of its parent."""
    with SyncBroker("embedded://") as broker:
        assert broker.enqueue(double, 1).fresh
        assert _in_child(lambda: 0 if broker.enqueue(double, 2).fresh else 2) == 0
        assert broker.monitor().snapshot().depth == 2
        server = broker._broker._embedded
    assert not server.running


# --- interrupts -----------------------------------------------------------------------------------

WAITS = """
import sys, time
from streamq import SyncBroker, task
@task(result_ttl=60)
def double(number: int) -> int: ...
with SyncBroker(sys.argv[1]) as broker:
    handle = broker.enqueue(double, 1)
    print("waits", flush=True)
    try:
        handle.result()
    except KeyboardInterrupt:
        print(broker.client.echo("well").decode(), broker.enqueue(double, 2).fresh)
        raise
"""


def test_ctrl_c_ends_a_wait_at_once_and_harms_no_later_call(real_server):
    """The connection of the wait is closed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WAITS, real_server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert out == "well True\n"
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    assert "ResourceWarning" not in err


def test_an_interrupt_before_the_reply_leaves_it_to_nobody(proxy, broker):
    """The next call on another connection gets its own reply."""
    broker.client.ping()
    proxy.delay(0.4)

    def interrupt(_number, _frame) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            broker.client.echo("first")
    finally:
        signal.signal(signal.SIGALRM, before)
    proxy.delay(0.0)
    assert broker.client.echo("second") == b"second"


def test_a_signal_handler_may_send(real_server):
    """In the midst of a call of the thread that it interrupts, whose reply is its own all the same."""
    with SyncBroker(real_server.url) as broker:
        sent, pool = [], broker._broker.sync_client.pool

        def handler(_number, _frame) -> None:
            while pool._idle:  # the next call connects anew
                pool.discard(pool._idle.pop())
            sent.append(broker.enqueue(double, 0))

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
        try:
            texts = [b"%d" % number for number in range(300)]
            assert [broker.client.echo(text) for text in texts] == texts
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(sent) > 1
        assert lengths(broker, real_server) == len(sent)


UNCLOSED = """
import sys
from streamq import SyncBroker
broker = SyncBroker(sys.argv[1])
broker.client.ping()
"""


def test_a_program_that_never_closes_it_ends_without_a_warning(real_server):
    """As most programs do that keep it as a global."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", UNCLOSED, real_server.url],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""


# --- the client -----------------------------------------------------------------------------------


def test_the_client_s_coroutines_never_suspend(real_server):
    """That is what the broker relies on."""
    client = SyncClient(Address.parse(real_server.url))
    assert run_now(client.ping()) is True
    assert run_now(client.server_features()).has("XADD")
    assert run_now(client.call([])) == []
    run_now(client.pause(0))
    client.close()
    assert client.closed
    with pytest.raises(redis.exceptions.ConnectionError) as caught:
        run_now(client.ping())
    assert not isinstance(caught.value, OutcomeUnknown)
