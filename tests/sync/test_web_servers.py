"""Web apps under real servers: gunicorn with `--preload`, whose broker was used before the fork, and uvicorn."""

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

COMMON = """
import os

from streamq import SyncBroker, task

broker = SyncBroker({url!r})


@task
def welcome(to: str) -> None: ...


def answer(handle=None) -> dict[str, object]:
    return {{"client": broker.client.command("CLIENT", "ID"), "pid": os.getpid()}}


first = broker.enqueue(welcome, "before the fork")
"""

FLASK = """
from flask import Flask

app = Flask(__name__)


@app.post("/signup/<to>")
def signup(to: str) -> dict[str, object]:
    broker.enqueue(welcome, to)
    return answer()
"""

DJANGO = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {folder!r} + "/db.sqlite3"}}}},
)


def signup(request, to: str) -> JsonResponse:
    with transaction.atomic():
        connection.cursor().execute("create table if not exists users (name text)")
        broker.on_django_commit().enqueue(welcome, to)
        with transaction.atomic():
            broker.on_django_commit().enqueue(welcome, "rolled back")
            transaction.set_rollback(True)
    return JsonResponse(answer())


urlpatterns = [path("signup/<to>", signup)]
app = get_wsgi_application()
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


def signup(request):  # sync: Starlette runs it in a thread
    broker.enqueue(welcome, request.path_params["to"])
    return JSONResponse(answer())


async def wrong(request):
    broker.enqueue(welcome, "in the event loop")


app = Starlette(routes=[Route("/signup/{{to}}", signup, methods=["POST"]), Route("/wrong", wrong)])
"""

FASTAPI = """
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from streamq import RedisBroker

a_broker = RedisBroker({url!r})


class Signup(BaseModel):
    to: str


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with a_broker:
        yield


app = FastAPI(lifespan=lifespan)


def sender() -> SyncBroker:  # a sync dependency: FastAPI runs it in a thread
    broker.check(welcome.call("somebody"))
    return broker


@app.post("/signup/{{to}}")
def signup(to: str, sender: Annotated[SyncBroker, Depends(sender)]) -> dict[str, object]:
    sender.enqueue(welcome, to)
    return answer()


@app.post("/async")
async def signup_async(signup: Signup) -> dict[str, str]:
    handle = await a_broker.enqueue(welcome, signup.to)
    return {{"task": handle.task_id, "status": await handle.status()}}


@app.get("/wrong")
async def wrong() -> None:
    broker.enqueue(welcome, "in the event loop")
"""

GUNICORN = ("gunicorn", "--preload", "--workers", "2", "--threads", "4", "--no-control-socket", "--bind")
APPS = {
    "flask": (FLASK, "valkey"), "django": (DJANGO, "redis"),
    "starlette": (STARLETTE, "valkey"), "fastapi": (FASTAPI, "redis"),
}  # fmt: skip
ASYNC_APPS = ("starlette", "fastapi")


@contextlib.contextmanager
def served(name: str, url: str, folder):
    """Serve an app in processes of its own; yield a client of it."""
    (folder / "shop.py").write_text((COMMON + APPS[name][0]).format(url=url, folder=str(folder)))
    port = free_port()
    command = (*GUNICORN, f"127.0.0.1:{port}")
    if name in ASYNC_APPS:
        command = ("uvicorn", "--port", str(port), "--log-level", "critical")
    process = subprocess.Popen([sys.executable, "-m", *command, "shop:app"], stderr=subprocess.DEVNULL, cwd=folder)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            _await_start(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(10)


def _await_start(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            client.post("/signup/first").raise_for_status()
            return
        time.sleep(0.05)
    pytest.fail("the server has not started")


@pytest.mark.parametrize("name", APPS)
def test_every_request_sends_its_task_and_no_two_processes_share_a_connection(shared_server, tmp_path, name):
    """Each task is there once; in the event loop of an async view the call is refused."""
    server = shared_server(APPS[name][1])
    with served(name, server.url, tmp_path) as client, ThreadPoolExecutor(8) as pool:
        posts = pool.map(lambda number: client.post(f"/signup/{number}"), range(60))
        answers = [post.raise_for_status().json() for post in posts]
        if also_async := name == "fastapi":
            told = client.post("/async", json={"to": "a@b.c"}).raise_for_status().json()
            assert told["status"] == "queued"
        # The last one: after a view that raises the server closes its connection, which the client may use again.
        assert client.get("/wrong").status_code == (500 if name in ASYNC_APPS else 404)
    with SyncBroker(server.url) as broker:
        # One before the fork, one to see that it has started.
        assert broker.monitor().snapshot().depth == 62 + also_async
    clients: dict[int, set[int]] = {}
    for answer in answers:
        clients.setdefault(answer["pid"], set()).add(answer["client"])
    assert len(set.union(*clients.values())) == sum(map(len, clients.values()))
