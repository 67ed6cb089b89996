"""The proxy of the scenarios: each fault does what it says, and ends when healed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.proxy import Proxy
from tests.faults.servers import until

pytestmark = pytest.mark.timeout(60)


class Echo:
    """A server that answers each chunk with itself, and remembers all of them."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.closed = 0  # connections whose client ended them
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.heard += data
                    connection.sendall(data)
            except OSError:
                pass
        self.closed += 1

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address, seed=1) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    """Connect through the proxy; the connection has exchanged a greeting."""
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
        made.append(connection)
        connection.sendall(b"hello")
        assert exactly(connection, 5) == b"hello"
        return connection

    yield connect
    for connection in made:
        connection.close()


def exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (data := connection.recv(size - len(found))):
        found += data
    return bytes(found)


def gone(connection: socket.socket) -> bool:
    """Wait for the end of a connection, by FIN or by RST; False if there is no end."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def silent(connection: socket.socket, seconds: float = 0.2) -> bool:
    """Does nothing come for a while?"""
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)
    return False


def test_carries_everything_in_order(proxy, client):
    """Without faults nothing is changed, however large."""
    connection = client()
    data = bytes(range(256)) * 8192
    threading.Thread(target=connection.sendall, args=(data,)).start()
    assert exactly(connection, len(data)) == data
    assert proxy.connections == 1


def test_the_end_of_either_side_is_passed_on(echo, proxy, client):
    """A client that leaves is not kept, nor is one whose server left."""
    client().close()
    until(lambda: echo.closed == 1 and proxy.connections == 0, 5, "the end at the server")


def test_cut_ends_all_or_some(proxy, client):
    """All connections, or as many as wanted; new ones are welcome."""
    connections = [client() for _ in range(4)]
    assert proxy.cut(count=1) == 1
    assert proxy.connections == 3
    assert proxy.cut() == 3
    assert all(gone(connection) for connection in connections)
    client()
    assert proxy.counts["cut"] == 4


@pytest.mark.parametrize("seed", range(4))
def test_cut_after_so_many_bytes(echo, seed):
    """Exactly so many bytes of the reply arrive; all of the request did."""
    with Proxy(echo.address, seed=seed) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        connection.sendall(b"hello")
        assert exactly(connection, 5) == b"hello"
        assert proxy.cut_after(7) == 1
        connection.sendall(b"0123456789")
        received = bytearray()
        try:
            while data := connection.recv(100):
                received += data
        except ConnectionResetError:
            pass  # and then the kernel may have thrown away what it had
        assert b"0123456".startswith(received)
        assert echo.heard == b"hello0123456789"


def test_cut_in_the_middle_of_a_request(echo, proxy, client):
    """The server gets the beginning of a request, and no more."""
    connection = client()
    proxy.cut_after(4, replies=False)
    connection.sendall(b"0123456789")
    assert gone(connection)
    until(lambda: echo.closed == 1, 5, "the end at the server")
    assert echo.heard == b"hello0123"


@pytest.mark.slow
def test_delay(proxy, client):
    """Both ways: a round trip takes twice as long, and order is kept."""
    connection = client()
    proxy.delay(0.1, jitter=0.05)
    started = time.monotonic()
    for letter in (b"a", b"b", b"c"):
        connection.sendall(letter)
        time.sleep(0.01)
    assert exactly(connection, 3) == b"abc"
    assert 0.2 <= time.monotonic() - started < 2
    proxy.heal()
    started = time.monotonic()
    connection.sendall(b"d")
    assert exactly(connection, 1) == b"d"
    assert time.monotonic() - started < 0.1


def test_split(proxy, client):
    """Everything arrives, in small pieces."""
    connection = client()
    proxy.split(3)
    for _ in range(20):  # on a busy machine the kernel may put all of them together again
        connection.sendall(b"0123456789" * 100)
        sizes = []
        while sum(sizes) < 1000:
            sizes.append(len(connection.recv(1000)))
        if len(sizes) > 1:
            break
    assert len(sizes) > 1
    proxy.heal()


@pytest.mark.parametrize("direction", ["requests", "replies", "both"])
def test_blackhole_holds_and_heal_lets_go(echo, proxy, client, direction):
    """In either direction nothing passes; what was held arrives after the healing."""
    connection = client()
    proxy.blackhole(requests=direction != "replies", replies=direction != "requests")
    connection.sendall(b"later")
    assert silent(connection)
    assert (echo.heard == b"hellolater") is (direction == "replies")
    proxy.heal()
    assert exactly(connection, 5) == b"later"
    assert echo.heard == b"hellolater"


def test_what_was_held_arrives_though_its_sender_is_gone(echo, proxy, client):
    """A late command of a client that gave up: TCP would deliver it as well."""
    connection = client()
    proxy.blackhole()
    connection.sendall(b"ghost")
    time.sleep(0.05)
    connection.close()
    assert echo.heard == b"hello"
    proxy.heal()
    until(lambda: echo.heard == b"helloghost" and echo.closed == 1, 5, "the late command, and the end")


def test_a_blackhole_takes_new_connections_and_no_login(proxy, client):
    """A dial succeeds, as with a full backlog, and nobody answers."""
    proxy.blackhole()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        connection.sendall(b"hello")
        assert silent(connection)
        proxy.heal()
        assert exactly(connection, 5) == b"hello"


def test_lost_replies(echo, proxy, client):
    """The command runs, nobody hears of it, the connection ends; a login passes."""
    proxy.lose_replies()
    connection = client()
    connection.sendall(b"did it run?")
    assert gone(connection)
    assert echo.heard == b"hellodid it run?"
    assert proxy.counts["lost replies"] == 1
    proxy.heal()
    client()


def test_refuse(proxy, client):
    """New connections are refused, those that are open go on, and after `heal` all is as before."""
    connection = client()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 5)
    connection.sendall(b"still")
    assert exactly(connection, 5) == b"still"
    proxy.heal()
    client()
    assert proxy.connections == 2


def test_retarget(proxy, client):
    """New connections go to another server."""
    client()
    other = Echo()
    proxy.retarget(other.address)
    client()
    assert other.heard == b"hello"
    other.close()


def test_a_server_that_is_away(proxy, client):
    """A client is cut off at once, and not left hanging."""
    proxy.retarget(("127.0.0.1", 1))
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
            assert gone(connection)
    except ConnectionResetError:  # before it knew that it was connected
        pass
    until(lambda: proxy.counts["refused"] == 1, 5, "a refusal")


def test_close_leaves_nothing(echo):
    """Neither connections nor the thread nor the port."""
    proxy = Proxy(echo.address)
    connection = socket.create_connection(("127.0.0.1", proxy.port), 5)
    proxy.close()
    assert gone(connection)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), 5)
    assert not any(thread.name == f"proxy {proxy.port}" for thread in threading.enumerate())
    with pytest.raises(RuntimeError):
        proxy.cut()
    connection.close()
