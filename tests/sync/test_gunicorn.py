"""A Flask app under gunicorn, with `--preload`: the broker was used before the fork, and each worker connects anew."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from streamq import SyncBroker
from tests.client.conftest import free_port

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

APP = """
import os

from flask import Flask

from streamq import SyncBroker, task

broker = SyncBroker({url!r})
app = Flask(__name__)


@task
def welcome(to: str) -> None: ...


@app.post("/signup/<to>")
def signup(to: str) -> dict[str, object]:
    task_id = broker.enqueue(welcome, to).task_id
    return {{"task": task_id, "client": broker.client.command("CLIENT", "ID"), "pid": os.getpid()}}


first = broker.enqueue(welcome, "before the fork")
"""


def test_each_process_has_connections_of_its_own(real_server, tmp_path):
    """Every request is answered, every task is there once, and no two processes share a connection."""
    (tmp_path / "shop.py").write_text(APP.format(url=real_server.url))
    place = f"127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4", "--bind", place,
        "--no-control-socket", "--chdir", str(tmp_path), "shop:app",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{place}") as client:
            _await_start(client, process)
            with ThreadPoolExecutor(8) as pool:
                answers = list(
                    pool.map(lambda number: client.post(f"/signup/{number}").raise_for_status().json(), range(60))
                )
    finally:
        process.terminate()
        process.wait(10)
    with SyncBroker(real_server.url) as broker:
        assert broker.monitor().snapshot().depth == 62  # one before the fork, one to see that it has started
    assert len({answer["task"] for answer in answers}) == 60
    by_process: dict[int, set[int]] = {}
    for answer in answers:
        by_process.setdefault(answer["pid"], set()).add(answer["client"])
    assert len(set.union(*by_process.values())) == sum(map(len, by_process.values()))


def _await_start(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            client.post("/signup/first").raise_for_status()
            return
        time.sleep(0.05)
    pytest.fail("gunicorn has not started")
