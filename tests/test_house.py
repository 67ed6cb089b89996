"""The house: what lies in the root of the package, and how long its files and functions are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import streamq
from tests.docs.pages import PAGES, ROOT

PACKAGE = Path(streamq.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400  # of a file
LONGEST = 50  # lines of a function


def test_the_root_holds_the_doors_alone() -> None:
    """Everything else is in a folder."""
    there = {path.name for path in PACKAGE.glob("*.py")}
    assert there == {"__init__.py", "__main__.py", "broker.py", "worker.py", "logs.py", "clock.py", "lazy_names.py"}


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SystemError:  # python/cpython#106905, before 3.11.8: what another test compiled has left a count wrong
        return ast.parse(source)


def test_every_folder_says_what_it_owns() -> None:
    """Its `__init__.py` opens with a docstring."""
    silent = [path for path in PACKAGE.glob("**/__init__.py") if not ast.get_docstring(_parsed(path.read_text()))]
    assert silent == []


def test_files_that_are_named_are_there() -> None:
    """A docstring, a comment or a page that names `folder/file.py` or a script names one that exists."""
    scripts = {path.name for path in (PACKAGE / "scripts").glob("*.lua")} | {"lua_setup.lua"}
    named = re.compile(r"(?<![\w/.<-])((?:[a-z_]+/)+[a-z_]+\.py|[a-z_]+\.lua)\b")
    texts = [*MODULES, *PACKAGE.rglob("*.lua"), *(path for path in PAGES if path.name != "changelog.md")]
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in texts
        for name in named.findall(path.read_text())
        if name not in scripts
        and not any((place / name).exists() for place in (PACKAGE, path.parent, ROOT))
        and not name.startswith(("app/", "path/", "app."))
    ]
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short_and_says_what_it_owns(path: Path) -> None:
    """No file above 400 lines, no function above 50; each opens with a docstring."""
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES
    tree = _parsed(source)
    assert ast.get_docstring(tree)
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONGEST
    }
    assert long == {}


# Who may read the wall clock of this machine, and why. All else asks for the server's time (`clock.py`).
WALL_CLOCK = {
    "clock.py": "the one place",
    "doctor/examine.py": "the time of a report is this machine's",
    "testing/suite_clock.py": "the clock of the server of a test, which follows this machine's, frozen or not",
    "exporters/prometheus.py": "an export is compared with the clock of who scrapes this machine",
}
WALL_CLOCK_FOLDERS = {"embedded": "it is the server", "cli/demo": "its server is on this machine"}
_READS = {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime"), ("time", "ctime"),
          ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}  # fmt: skip


def test_no_other_module_reads_the_wall_clock() -> None:
    """P13: a clock that steps, or that is off, changes nothing, for nobody looks at it."""
    found = set()
    for path in MODULES:
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(_parsed(path.read_text())):
            read = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if read and (node.value.id, node.attr) in _READS:
                found.add(name)
            if isinstance(node, ast.ImportFrom) and node.module == "time" and node.names[0].name == "time":
                found.add(name)
    assert {name for name in found if not name.startswith(tuple(WALL_CLOCK_FOLDERS))} == set(WALL_CLOCK)
