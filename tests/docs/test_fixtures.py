"""The fixtures of `docs/testing.md` work under the plugins that they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import BLOCKS, ROOT

pytestmark = pytest.mark.slow


def fixture(holds: str) -> str:
    """Return the block of the page that defines a broker fixture with these words."""
    (found,) = [
        block.code
        for block in BLOCKS
        if block.page.name == "testing.md" and "def broker():" in block.code and holds in block.code
    ]
    return found


def run_pytest(tmp_path: Path, code: str, *options: str) -> str:
    (tmp_path / "test_double.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), *options, str(tmp_path)], check=False, cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_with_the_plugin_of_anyio(tmp_path):
    """Under both backends, without another package."""
    assert "2 passed" in run_pytest(tmp_path, fixture("pytest.mark.anyio"))


def test_with_pytest_asyncio(tmp_path):
    """The fixture in a task of its own passes; the other one says what to do."""
    auto = ("-o", "asyncio_mode=auto")
    assert "1 passed" in run_pytest(tmp_path, fixture("asyncio.create_task"), *auto)
    plain = fixture("pytest.mark.anyio").replace("pytestmark = pytest.mark.anyio", "")
    told = run_pytest(tmp_path, plain, *auto)
    assert "1 passed, 1 error" in told
    assert "see docs/testing.md (fixtures)" in told
