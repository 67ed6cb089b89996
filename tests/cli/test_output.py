"""What the command line and the log print: one door, everything escaped (P13)."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys

import pytest

from streamq.cli import logs, output
from streamq.wire.printable import printable
from tests.docs.pages import ROOT

ESC = "\x1b]0;PWNED\x07\x1b[31m"
FORGED = "\n2026-01-01 00:00:00.000 ERROR   streamq[1] admin password reset"
DOORS = {"print", "echo", "secho", "echo_via_pager", "style"}


def _calls(path):
    """Yield what a module calls to print."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in DOORS and owner in ("", "click"):
                yield name
            if owner in ("sys.stdout", "sys.stderr") and name.startswith("write"):
                yield f"{owner}.{name}"


@pytest.mark.slow
def test_there_is_one_door_to_the_terminal():
    """No module prints but cli/output.py (and the guard of logging, on stderr, in ASCII). The demo draws by rich."""
    doors = {"cli/output.py", "diagnostics/safe_log.py"}
    package = ROOT / "streamq"
    found = {
        f"{path.relative_to(package)}: {name}"
        for path in package.rglob("*.py")
        if str(path.relative_to(package)) not in doors and "testing" not in path.parts
        for name in _calls(path)
    }
    assert found == set()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_of_the_log_can_be_forged(log_format):
    """By a message, a logger's name, an exception, its notes, its class, or a stack."""
    formatter = logs.JsonFormatter() if log_format == "json" else logs.TextFormatter()
    kind = type("Odd" + ESC + FORGED, (ValueError,), {})
    try:
        error = kind(f"{FORGED}{ESC}\x9b\u202e\r")
        error.add_note(FORGED)
        raise error
    except kind:
        said = f"said{FORGED}{ESC}\r\x85\u2028"
        record = logging.LogRecord("log" + FORGED, 40, "p", 1, "%s", (said,), sys.exc_info())
    record.stack_info = f"Stack:{FORGED}{ESC}"
    text = formatter.format(record)
    assert all(char.isprintable() or char == "\n" for char in text)
    first, *rest = text.split("\n")
    assert first.startswith("{" if log_format == "json" else "20")
    assert not [line for line in rest if not line.startswith("    ")]
    if log_format == "json":
        assert json.loads(text)["message"].startswith("said\n")


def test_a_log_line_has_a_bound():
    record = logging.LogRecord("a", 40, "p", 1, "%s", ("x" * 3_000_000,), None)
    assert len(logs.TextFormatter().format(record)) < 11_000


def test_results_and_notes_are_escaped(capsys):
    output.result(f"a{ESC}{FORGED}")
    output.note(f"b{ESC}{FORGED}")
    output.block(f"c{ESC}\nd{ESC}", err=True)
    output.result_json({f"e{ESC}": f"\x9b\u202e{FORGED}"})
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert len(shown.err.splitlines()) == 3
    assert all(char.isprintable() or char == "\n" for char in shown.out + shown.err)
    assert printable(f"a{ESC}{FORGED}") in shown.out


def test_the_loggers_of_streamq_stay_enabled_whatever_a_module_configures(tmp_path):
    """`dictConfig` disables all loggers that exist; the death of a task was not logged."""
    (tmp_path / "silences.py").write_text(SILENCES)
    command = [sys.executable, "-m", "streamq", "worker", "silences", "--burst"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "is dead (retries_exhausted)" in ended.stderr


@pytest.mark.parametrize("given", [(), ("--log-format", "json"), ("--log-level", "info"), ("variable",)])
def test_what_is_given_wins_over_a_module_that_configures_the_root_logger(tmp_path, given):
    """On the terminal alone: a file of the module has its lines in any case. Nothing given: the module's stays."""
    (tmp_path / "configures.py").write_text(SILENCES.replace('{"version": 1}', str(DJANGO)))
    environment = os.environ | ({"STREAMQ_WORKER_LOG_FORMAT": "json"} if given == ("variable",) else {})
    command = [
        sys.executable,
        "-m",
        "streamq",
        "worker",
        "configures",
        "--burst",
        *given[: 2 * ("variable" not in given)],
    ]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    line = next(line for line in ended.stderr.splitlines() if "is dead (retries_exhausted)" in line)
    assert "is dead (retries_exhausted)" in (tmp_path / "app.log").read_text()
    assert ended.stderr.count("is dead (retries_exhausted)") == 1
    if not given:
        assert line.startswith("MINE ERROR")
        assert "Give its handlers the filter streamq.logs.TaskFields" in ended.stderr
    else:
        assert "MINE" not in line
        assert ("json" in given or "variable" in given) == line.startswith("{")
        assert "replaced its handlers to the terminal" in ended.stderr


DJANGO = {
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"mine": {"format": "MINE %(levelname)s %(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "mine"},
        "file": {"class": "logging.FileHandler", "filename": "app.log"},
    },
    "root": {"handlers": ["console", "file"], "level": "INFO"},
}  # fmt: skip

SILENCES = """
import logging.config
from contextlib import asynccontextmanager
from streamq import RedisBroker, task

logging.config.dictConfig({"version": 1})
broker = RedisBroker("memory://silences")

@task(retries=0)
async def fails():
    raise ValueError

@asynccontextmanager
async def lifespan(worker):
    await broker.enqueue(fails)
    yield
"""
