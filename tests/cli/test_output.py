"""What the command line and the log print: one door, everything escaped (P13)."""

from __future__ import annotations

import ast
import json
import logging
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
