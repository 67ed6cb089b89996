"""What docs/wire-format.md says to write by hand is run by a worker, and what dies can be read."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from streamq import RedisBroker, Worker, task
from tests.docs.pages import ROOT, blocks_of
from tests.servers import RealServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Kind

WRITES = ("XADD", "HSET", "ZADD", "PUBLISH")


@pytest.fixture
def valkey(shared_server: Callable[[Kind], RealServer]) -> RealServer:
    return shared_server("valkey")


async def test_what_is_written_by_hand_runs(anyio_backend: str, valkey: RealServer) -> None:
    """The page's XADD, its HSET with ZADD and its workflow are tasks like any other; ids are as it says."""
    sent: list[str] = []

    @task
    async def send(to: str) -> None:
        sent.append(to)

    @task
    async def fetch(host: str) -> str:
        return f"page of {host}"

    @task
    async def parse(page: str) -> None:
        sent.append(f"parsed {page}")

    for block in blocks_of(ROOT / "docs" / "wire-format.md"):
        for line in block.code.splitlines() if block.language == "console" else ():
            _, command, *arguments = shlex.split(line)
            if command in WRITES:
                valkey.command(command, *arguments)

    async with RedisBroker(valkey.url) as broker:
        await Worker(broker, tasks=[send, fetch, parse], burst=True).run()

    assert sorted(sent) == ["a@b.c", "boss@b.c", "later@b.c", "parsed page of a.example"]
    assert valkey.cli("XLEN", "queue:standard") == "0"
    assert valkey.cli("XLEN", "queue:dead") == "0"
    assert not {"queue:standard:delayed", "queue:standard:messages"} & set(valkey.keys())


async def test_a_dead_letter_reads_without_tools(anyio_backend: str, valkey: RealServer) -> None:
    """XRANGE shows a flat entry whose fields are text."""

    @task(retries=0)
    async def send(to: str) -> None:
        raise ValueError(f"no such address: {to}")

    async with RedisBroker(valkey.url) as broker:
        valkey.command("XADD", "queue:standard", "*", "task", "send", "kwargs", '{"to":"a@b.c"}')
        await Worker(broker, tasks=[send], burst=True).run()

    lines = valkey.cli("XRANGE", "queue:dead", "-", "+").splitlines()
    shown = dict(zip(lines[1::2], lines[2::2], strict=False))
    expected = {"task": "send", "kwargs": '{"to":"a@b.c"}', "tier": "standard", "reason": "retries_exhausted"}
    assert expected.items() <= shown.items()
    assert "no such address: a@b.c" in lines
