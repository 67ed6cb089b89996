"""mypy and pyright agree on what is right and what is wrong in `api.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def test_mypy_flags_every_wrong_call_and_nothing_else():
    """Strict, and an ignore that is not needed is an error."""
    done = run("mypy", "--strict", "--warn-unused-ignores", "--no-error-summary", "tests/typing/api.py")
    assert [line for line in done.stdout.splitlines() if line.startswith("tests/")] == [], done.stdout


def test_pyright_flags_every_wrong_call_and_nothing_else(tmp_path):
    """In standard mode, with ignores that are not needed reported."""
    settings = {
        "include": [os.path.relpath(HERE / "api.py", tmp_path)], "extraPaths": [str(ROOT)], "pythonVersion": "3.11",
        "typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error", "enableTypeIgnoreComments": False,  # noqa: E501
    }  # fmt: skip
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    done = run("pyright", "--pythonpath", sys.executable, "-p", str(config), "--verbose")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Found 1 source file" in done.stdout, done.stdout
