"""The tests on `docs/testing-your-tasks.md` pass, under the plugins that they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest

from tests.docs.pages import BLOCKS, ROOT

PAGE = ROOT / "docs" / "testing-your-tasks.md"
TESTS = [block for block in BLOCKS if block.language == "python" and "def test_" in block.code]
NEEDED = ("pytest_asyncio", "pytest_trio", "time_machine", "freezegun")
INI = "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"


def test_they_are_on_this_page():
    """So nothing that looks like a test is passed over."""
    assert {block.page for block in TESTS} == {PAGE}


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="not all plugins are installed")
def test_the_tests_of_the_page(tmp_path):
    """All of them in one run, each block a module."""
    names = [f"test_line_{block.line}" for block in TESTS]
    for name, block in zip(names, TESTS, strict=True):
        (tmp_path / f"{name}.py").write_text(block.code)
    (tmp_path / "pytest.ini").write_text(INI)
    ours = () if any(one.name == "streamq" for one in entry_points(group="pytest11")) else (
        "-p", "streamq.testing.pytest_plugin",
    )  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-rA",
        *ours,
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"PASSED {name}.py" in done.stdout for name in names)
