"""The constraints fit pyproject.toml, and the check sees where they would not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pinned import CONSTRAINTS, ROOT, complaints, pins, pyproject


def test_the_constraints_fit_pyproject() -> None:
    """Whatever is named there is pinned within its range; `python -m tests.pinned` writes the file again."""
    assert complaints(pyproject()["project"], pins(CONSTRAINTS.read_text())) == []


def test_the_check_is_a_command() -> None:
    """It asks no registry."""
    command = (sys.executable, "-m", "tests.pinned", "--check")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_constraints_name_no_place() -> None:
    """Neither a registry nor a folder: they hold on any machine."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert not [line for line in lines if "/" in line or "\\" in line or line.startswith("-") or "@" in line]


def test_what_builds_the_package_is_pinned() -> None:
    """Constraints do not reach into pip's isolated build: its requirements are exact, and need nothing themselves."""
    (backend,) = pyproject()["build-system"]["requires"]
    assert backend.startswith("flit_core==")


PROJECT = {
    "name": "streamq",
    "dependencies": ["redis>=5"],
    "optional-dependencies": {"all": ["streamq[web]"], "web": ["Under_Score[x]>=2,<3; python_version >= '3.12'"]},
}


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ("redis==5.0\nunder-score==2.1", []),
        ("redis==5.0\nunder-score==2.1 ; python_full_version >= '3.12'", []),
        ("redis==5.0\nunder-score==2.1 ; python_full_version < '3.13'\nunder-score==2.2; python_version >= '3.13'", []),
        ("redis==4.9\nunder-score==2.1", ["redis>=5 excludes 4.9"]),
        ("redis==5.0\nunder-score==3.0", ["Under_Score[x]<3,>=2"]),
        ("redis==5.0\nunder-score==2.1 ; python_full_version < '3.13'", ["is not pinned for Python 3.13"]),
        ("under-score==2.1", ["redis>=5 is not pinned for Python 3.11", "3.12", "3.13"]),
        ("redis>=5.0\nunder-score==2.1", ["redis>=5.0 is not pinned by =="]),
        ("redis==5.0\nredis==5.1\nunder-score==2.1", ["redis is pinned twice for Python 3.11", "3.12", "3.13"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(constraints: str, said: list[str]) -> None:
    """One line for each requirement and Python; nothing for what fits."""
    found = complaints(PROJECT, pins(constraints))
    if not said:
        assert found == []
    for text in said:
        assert any(text in line for line in found), found
