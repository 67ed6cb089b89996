"""Every parameter of `Worker` can be set on the command line."""

from __future__ import annotations

import inspect
import sys

import pytest

from streamq import Worker
from streamq.cli.entry import cli
from streamq.cli.loading import LoadingError, load_listener
from streamq.cli.worker import worker as command

ELSEWHERE = {"broker", "tasks", "middleware", "lifespan"} | {"seed"}  # those of the module; one is for tests
NAMES = {
    "visibility_timeout": "lease", "grace_period": "grace", "tiers": "weights", "processes": "task_processes",
    "max_rss": "process_max_rss", "initializer": "process_initializer",
}  # fmt: skip


def test_every_parameter_of_a_worker_is_a_flag():
    """One that is new needs a flag, or a word in `ELSEWHERE` about where it is set."""
    flags = {param.name for param in command.params if param.param_type_name == "option"}
    wanted = {NAMES.get(name, name) for name in inspect.signature(Worker).parameters if name not in ELSEWHERE}
    assert wanted - flags == set()


def test_a_flag_has_the_default_of_its_parameter(monkeypatch):
    """As it is read from the command line."""
    from streamq.cli import worker_process

    made = {}
    monkeypatch.setattr(worker_process, "serve", lambda settings, stops: made.update(settings=settings))
    monkeypatch.setattr("streamq.cli.stop_signals.StopSignals.install", lambda self: None)
    cli.main(["worker", "app"], prog_name="streamq", standalone_mode=False)  # click keeps the -h of its first context
    settings = made["settings"]
    for name, parameter in inspect.signature(Worker).parameters.items():
        if name not in ELSEWHERE:
            assert getattr(settings, NAMES.get(name, name)) == parameter.default, name


@pytest.mark.slow
def test_a_listener_by_its_path(start, app, url, anyio_backend):
    """It gets every event, in each process; `--max-prefetch 0` reads for free slots alone."""
    (app / "metrics.py").write_text(
        "class Seen:\n    def heard(self, event):\n        print('heard', type(event).__name__, flush=True)\n\n"
        "seen = Seen()\n\ndef also(event):\n    print('also', type(event).__name__, flush=True)\n"
    )
    assert start("enqueue", "send", "a@b.c", "--url", url).ended() == 0
    program = start(
        "worker", "app", "--url", url, "--burst", "--backend", anyio_backend, "--max-prefetch", "0", "-p", "2",
        "--listener", "metrics:seen.heard", "--listener", "metrics:also",
    )  # fmt: skip
    assert program.ended() == 0, program.output
    assert {"heard Started", "heard Settled", "also Settled"} <= set(program.seen)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("listens", "write MODULE:NAME, such as app.metrics:on_event"),
        ("listens:nothing", "listens has no 'nothing'"),
        ("listens:number", "is of type int: give a function of one argument"),
        ("nowhere:on_event", "no module 'nowhere' here"),
    ],
)
def test_one_that_cannot_be_used(tmp_path, monkeypatch, spec, says):
    """Is one line."""
    (tmp_path / "listens.py").write_text("number = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadingError, match=says):
        load_listener(spec)
    sys.modules.pop("listens", None)
