"""Every example runs as it is, in a process of its own, with no server and with a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Kind, RealServer

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "quickstart_asyncio": "sent: {'a@b.c': 2}\n",
    "quickstart_trio": "sent: {'a@b.c': 2}\n",
    "producer_by_name": (
        "report is delayed\n100 more in one round trip\n"
        "critical: 1 waiting, 0 delayed\nstandard: 101 waiting, 0 delayed\nbulk: 0 waiting, 1 delayed\n"
    ),
    "consumer_by_hand": ("0 to 0@b.c\n1 to 1@b.c\n2 to 2@b.c\ndead: unheard_of because no handler for unheard_of\n"),
    "web_handler": "202 fresh\n202 sent already\nwelcome, a@b.c\n",
}
CASES = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name in PRINTS
    for backend in ("asyncio", "trio")
    if not name.startswith("quickstart") or name.endswith(backend)
]


def test_every_example_is_run() -> None:
    """A new example needs its line above."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


def run(name: str, **environment: str) -> str:
    """Run an example and return what it prints. Warnings are errors, but deprecations inside of dependencies."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("STREAMQ_URL", "BACKEND")}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    deprecated = ("-W", "default::DeprecationWarning", "-W", "error::DeprecationWarning:__main__")
    command = [sys.executable, "-W", "error", *deprecated, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_runs_without_a_server(name: str, backend: str) -> None:
    """`python examples/x.py` needs nothing but the extra."""
    assert run(name, BACKEND=backend) == PRINTS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("kind", ["valkey"])
def test_runs_on_a_real_server(
    name: str, backend: str, kind: Kind, shared_server: Callable[[Kind], RealServer]
) -> None:
    """The same on a server that is a process."""
    assert run(name, BACKEND=backend, STREAMQ_URL=shared_server(kind).url) == PRINTS[name]


async def test_a_web_handler_enqueues(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is answered when the task is in the stream; the same form again sends nothing."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delenv("STREAMQ_URL", raising=False)
    monkeypatch.delitem(sys.modules, "web_handler", raising=False)
    import web_handler

    monkeypatch.setattr(web_handler, "URL", "memory://")
    async with web_handler.app.router.lifespan_context(web_handler.app):
        transport = httpx.ASGITransport(web_handler.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
            first = await client.post("/sign-up", json={"to": "a@b.c"})
            again = await client.post("/sign-up", json={"to": "a@b.c"})
            other = await client.post("/sign-up", json={"to": "d@e.f"})
        assert [answer.json()["fresh"] for answer in (first, again, other)] == [True, False, True]
        assert first.json()["task_id"] == again.json()["task_id"]
        assert await web_handler.app.state.broker.client.xlen("queue:standard") == 2
