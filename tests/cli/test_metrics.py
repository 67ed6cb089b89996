"""`streamq worker --metrics` and `streamq metrics`: probes and scrapes of real processes."""

from __future__ import annotations

import re
import signal
import socket
import time

import httpx
import pytest

from tests.cli.conftest import ROOT
from tests.client.conftest import free_port

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


def port_of(program) -> int:
    return int(re.search(r"127\.0\.0\.1:(\d+)$", program.expect("probes and metrics at"))[1])


def ask(port: int, path: str, patience: float = 20.0) -> httpx.Response:
    """Ask until there is an answer that is not 503."""
    deadline = time.monotonic() + patience
    while True:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}")
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        else:
            if answer.status_code != 503 or time.monotonic() > deadline:
                return answer
        time.sleep(0.05)


def test_a_worker(start, url, anyio_backend):
    """Ready once it reads; the figures of the queue and of the process; not ready while it drains."""
    assert start("enqueue", "send", "a@b.c", "--url", url).ended() == 0
    program = start("worker", "app", "--url", url, "--backend", anyio_backend, "--metrics", "127.0.0.1:0")
    port = port_of(program)
    assert ask(port, "/readyz").text == "ok\n"
    program.expect("sent a@b.c")
    text = ask(port, "/metrics").text
    assert "\nstreamq_up 1.0\n" in text
    assert "\nprocess_resident_memory_bytes " in text
    assert start("enqueue", "held", "x", "gate", "--url", url).ended() == 0
    program.expect("start x")
    program.signal(signal.SIGTERM)
    program.expect("draining")
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").text == "the worker is draining\n"
    assert ask(port, "/livez").status_code == 200
    program.signal(signal.SIGTERM)
    assert program.ended() == 0, program.output


def test_it_answers_while_it_waits_for_the_server(start, anyio_backend):
    """A worker whose server is silent is alive, and not ready; if it never had one, that is an error in the end."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        program = start(
            "worker", "app", "--url", f"redis://127.0.0.1:{silent.getsockname()[1]}", "--metrics", "127.0.0.1:0",
            "--backend", anyio_backend,
        )  # fmt: skip
        port = port_of(program)
        assert ask(port, "/livez").status_code == 200
        unready = httpx.get(f"http://127.0.0.1:{port}/readyz")
        assert (unready.status_code, unready.text) == (503, "the worker is new\n")
        assert program.ended() == 2  # the server of the URL cannot be used


def test_processes_have_ports_of_their_own(start, url, anyio_backend):
    """One that is replaced listens where the one before did."""
    port = free_port()
    program = start(
        "worker", "app", "--url", url, "-p", "2", "--metrics", f"127.0.0.1:{port}", "--backend", anyio_backend,
        "--max-tasks", "3",
    )  # fmt: skip
    assert (ask(port, "/readyz").text, ask(port + 1, "/readyz").text) == ("ok\n", "ok\n")
    for _ in range(12):
        assert start("enqueue", "send", "a@b.c", "--url", url).ended() == 0
    program.expect("has drained")
    assert (ask(port, "/readyz").text, ask(port + 1, "/readyz").text) == ("ok\n", "ok\n")
    program.signal(signal.SIGTERM)
    assert program.ended() == 0, program.output


@pytest.mark.parametrize("more", [(), ("-p", "2")])
def test_a_port_that_is_taken_is_a_usage_error(start, url, more):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = start("worker", "app", "--url", url, "--metrics", f"127.0.0.1:{port}", *more)
        assert program.ended() == 2, program.output
        assert f"--metrics 127.0.0.1:{port}: nothing can listen at" in program.output


def test_the_last_port_of_several_processes(here):
    code, _, err = here("worker", "app", "--metrics", "127.0.0.1:65535", "-p", "2")
    assert (code, "give a lower one" in " ".join(err)) == (2, True)


@pytest.mark.parametrize("given", ["9464", ":9464", "host:", "127.0.0.1:65536", "::1:9464", "a b:1"])
def test_no_address(here, given):
    code, _, err = here("worker", "app", "--metrics", given)
    assert code == 2
    assert "is no address: write HOST:PORT" in " ".join(err)


def test_a_process_of_its_own(start, shared_server, anyio_backend):
    """Ready once it has read the figures; Ctrl-C ends it."""
    server = shared_server("redis")
    assert start("enqueue", "send", "a@b.c", "--url", server.url).ended() == 0
    program = start("metrics", "--url", server.url, "--listen", "127.0.0.1:0", "--backend", anyio_backend)
    port = port_of(program)
    assert ask(port, "/readyz").text == "ok\n"
    assert 'streamq_depth{tier="standard"} 1.0' in ask(port, "/metrics").text
    program.signal(signal.SIGINT)
    assert program.ended() == 130


def test_a_process_of_its_own_needs_a_server_that_others_use(here):
    code, _, err = here("metrics", "--url", "memory://")
    assert code == 2
    assert "ends with it" in " ".join(err)


def test_without_its_extra(start, url, tmp_path):
    (tmp_path / "h11.py").write_text("raise ImportError('h11')")
    program = start("worker", "app", "--url", url, "--metrics", "127.0.0.1:0", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert program.ended() == 2
    assert "pip install 'streamq[metrics]'" in program.output


@pytest.mark.parametrize("option", ["127.0.0.1:8125", "nowhere.invalid:8125"])
def test_statsd(start, url, option, anyio_backend):
    """Counts of runs; a server that is not there is a line of the log, and no more."""
    assert start("enqueue", "send", "a@b.c", "--url", url).ended() == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        there = option.startswith("127.")
        given = f"127.0.0.1:{statsd.getsockname()[1]}" if there else option
        program = start("worker", "app", "--url", url, "--burst", "--statsd", given, "--backend", anyio_backend)
        assert program.ended() == 0, program.output
        if there:
            assert b"streamq.runs:1|c|#task:send,tier:standard,outcome:done" in statsd.recv(2000)
        else:
            assert "what is lost is not sent again" in program.output
