"""The supervisor of worker processes, where the system has no process for one."""

from __future__ import annotations

import errno
import logging

import anyio

from streamq.cli import supervisor
from streamq.cli.server_options import ServerOptions
from streamq.cli.worker_settings import Settings
from streamq.tasks.retry_policy import Backoff


async def test_a_process_that_the_system_does_not_have_is_tried_again(anyio_backend, monkeypatch, caplog):
    """It ended the supervisor, and with it all that ran."""
    monkeypatch.setattr(supervisor, "_RESTART_BACKOFF", Backoff(base=0.01, cap=0.01, jitter=False))
    caplog.set_level(logging.INFO)
    one = supervisor._Supervisor(Settings(modules=("app",), server=ServerOptions()))
    started = object()
    answers = [OSError(errno.EAGAIN, "no process"), FileNotFoundError(errno.ENOENT, "no Python"), started]

    async def start(slot: int) -> object:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(one, "_start", start)
    with anyio.fail_after(5):
        assert await one._start_in_the_end(0) is started
    assert [record.event for record in caplog.records] == ["shortage", "shortage"]
    assert "worker 1 cannot be started: [Errno 11] no process; the next try is in 0.01 s" in caplog.text


async def test_a_stop_ends_the_tries(anyio_backend, monkeypatch):
    one = supervisor._Supervisor(Settings(modules=("app",), server=ServerOptions()))

    async def start(slot: int) -> object:
        one.stop_level = 1
        one._stopped.set()
        raise OSError(errno.EAGAIN, "no process")

    monkeypatch.setattr(one, "_start", start)
    with anyio.fail_after(5):
        assert await one._start_in_the_end(0) is None
