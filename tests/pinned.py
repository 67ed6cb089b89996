"""Pins the development environment: writes `tests/constraints.txt`, and checks it.

    python -m tests.pinned            everything at the newest version that pyproject.toml allows
    python -m tests.pinned --check    exits with 1 if the file does not fit pyproject.toml; asks no registry
    python -m tests.pinned --installed    prints which versions pyproject.toml's ranges became in this environment

One file serves all Pythons from 3.11 on, by markers. It says what the project was proved with: README's commands
and CI install with `-c tests/constraints.txt`. What users get are the ranges of pyproject.toml.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")
HEAD = """\
# What the project is proved with: the whole development environment, for Python 3.11, 3.12 and 3.13.
# Written by `python -m tests.pinned`; not edited by hand.
"""


def pyproject() -> dict:
    """Return pyproject.toml as it stands."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def required(project: Mapping) -> Iterator[Requirement]:
    """Yield what the project and all its extras name, without itself."""
    groups = (project["dependencies"], *project.get("optional-dependencies", {}).values())
    for line in (line for group in groups for line in group):
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) != canonicalize_name(project["name"]):
            yield requirement


def pins(text: str) -> list[Requirement]:
    """Return the lines of a file of constraints. Raises InvalidRequirement for a line that is none."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def complaints(project: Mapping, constraints: list[Requirement]) -> list[str]:
    """Say what the project names and the constraints do not pin, or pin to what the project excludes.

    Looked at as each of `PYTHONS` on this system sees it, by the markers of both.
    """
    loose = [f"{pin} is not pinned by ==" for pin in constraints if [one.operator for one in pin.specifier] != ["=="]]
    return loose + [line for python in PYTHONS for line in _complaints(python, project, constraints)]


def _complaints(python: str, project: Mapping, constraints: list[Requirement]) -> Iterator[str]:
    here = {"python_version": python, "python_full_version": f"{python}.99", "extra": ""}
    pinned: dict[str, str] = {}
    for pin in _chosen(constraints, here):
        name = canonicalize_name(pin.name)
        if name in pinned:
            yield f"{name} is pinned twice for Python {python}"
        pinned[name] = next(iter(pin.specifier)).version
    for requirement in _chosen(required(project), here):
        chosen = pinned.get(canonicalize_name(requirement.name))
        if chosen is None:
            yield f"{requirement} is not pinned for Python {python}"
        elif not requirement.specifier.contains(chosen):
            yield f"{requirement} excludes {chosen}, which is pinned for Python {python}"


def _chosen(requirements: Iterable[Requirement], here: dict[str, str]) -> Iterator[Requirement]:
    return (one for one in requirements if one.marker is None or one.marker.evaluate(here))


def compile_constraints() -> str:
    """Ask the registry, by uv, for the newest versions that the ranges allow. Raises CalledProcessError."""
    command = [
        Path(sys.executable).with_name("uv"), "pip", "compile", "--universal", "--python-version", PYTHONS[0],
        "--extra", "dev", "--no-config", "--no-header", "--no-annotate", "--quiet", "pyproject.toml",
    ]  # fmt: skip
    # What is set up for this machine alone is not written into a file for all.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    return subprocess.run(command, cwd=ROOT, env=clean, check=True, stdout=subprocess.PIPE, text=True).stdout


def installed() -> str:
    """Say which versions this environment has of what the project and its extras name."""
    here = {"extra": ""}
    names = sorted({canonicalize_name(one.name) for one in _chosen(required(pyproject()["project"]), here)})
    versions = "   ".join(f"{name}\N{NO-BREAK SPACE}{version(name)}" for name in names)
    lines = textwrap.wrap(versions, 110, break_on_hyphens=False)
    return "\n".join([f"Python {platform.python_version()}", *lines]).replace("\N{NO-BREAK SPACE}", " ")


def main() -> int:
    """Write the file, or do what the option says; return the exit code."""
    summary, _, usage = (__doc__ or "").partition("\n\n")
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.pinned", description=summary, epilog=usage, formatter_class=shape)
    parser.add_argument("--check", action="store_true", help="write nothing; say what does not fit pyproject.toml")
    parser.add_argument("--installed", action="store_true", help="write nothing; print the versions that are installed")
    options = parser.parse_args()
    if options.installed:
        print(installed())
        return 0
    if not options.check:
        CONSTRAINTS.write_text(HEAD + compile_constraints())
    wrong = complaints(pyproject()["project"], pins(CONSTRAINTS.read_text()))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
