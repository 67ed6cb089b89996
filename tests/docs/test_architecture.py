"""The pictures of docs/architecture.md are true: folders by their imports, states and scripts by what is there."""

from __future__ import annotations

import re
import tomllib

import grimp
import pytest

from tests.docs.pages import BLOCKS, ROOT, table_under

PACKAGE = ROOT / "streamq"
PAGE = ROOT / "docs" / "architecture.md"
STATES = ROOT / "docs" / "states.md"


def pictures() -> list[str]:
    """Return the mermaid blocks of the page: the folders, the states."""
    return [block.code for block in BLOCKS if block.page == PAGE and block.language == "mermaid"]


def arrows(picture: str, arrow: str) -> set[tuple[str, str]]:
    """Return the arrows of a picture; `a --> b & c` is two."""
    found = set()
    for line in picture.splitlines():
        start, drawn, ends = re.sub(r'\[(?!\*)".*?"\]', "", line).partition(arrow)
        if drawn:
            found |= {(start.strip(), end.strip()) for end in ends.partition(":")[0].split("&")}
    return found


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Return which folder (or module of the root) imports which."""
    graph = grimp.build_graph("streamq", cache_dir=None)
    found: dict[str, set[str]] = {child.split(".")[1]: set() for child in graph.find_children("streamq")}
    for module in graph.modules - {"streamq"}:
        folder = module.split(".")[1]
        for imported in graph.find_modules_directly_imported_by(module) - {"streamq"}:
            if (other := imported.split(".")[1]) != folder:
                found[folder].add(other)
    return found


def reached(imports: dict[str, set[str]], start: str) -> set[str]:
    """Return all that a folder imports, directly or not."""
    found: set[str] = set()
    left = list(imports[start])
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += imports[one]
    return found


def test_the_folders_are_drawn_as_they_import(imports) -> None:
    """Each arrow is an import, and each import an arrow or what follows from others."""
    direct = {
        (folder, other)
        for folder, others in imports.items()
        for other in others
        if not any(other in reached(imports, between) for between in others - {other})
    }
    assert arrows(pictures()[0], "-->") == direct
    assert {name for arrow in direct for name in arrow} == set(imports)


def test_the_table_has_every_folder() -> None:
    """Each folder says what it owns."""
    named = {name for row in table_under(PAGE, "## The folders") for name in row[0].split(", ")}
    assert named == {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}


def test_every_folder_has_its_line_in_the_contract() -> None:
    """The order that import-linter checks names each folder and each module of the root."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "folders"]
    names = {name.strip() for layer in layers for name in layer.split("|")}
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in PACKAGE.glob("*.py")}
    assert names == there - {"__init__"}
    inside = {contract["containers"][0] for contract in contracts if contract["type"] == "layers"}
    folders = {f"streamq.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")} - {"streamq.scripts"}
    assert folders <= inside


def test_the_way_of_a_message_names_seven_files() -> None:
    """In order, and all of them are there; so are the files of the table of loops."""
    section = PAGE.read_text().split("## The way of a message")[1].split("\n## ")[0]
    files = re.findall(r"^(\d)\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert [int(number) for number, _ in files] == list(range(1, 8))
    loops = [row[1] for row in table_under(PAGE, "## The loops of a worker")]
    assert [file for file in [*(file for _, file in files), *loops] if not (PACKAGE / file).exists()] == []


def test_the_states_are_drawn_as_the_table_has_them() -> None:
    """Each transition of the table is an arrow, and each arrow a row; scripts on arrows are those of the row."""
    drawn = {(a.replace("[*]", ""), b) for a, b in arrows(pictures()[1], "-->")}
    rows = table_under(STATES, "## Transitions")
    told = {
        (before, after)
        for row in rows
        for before in row[0].split(", ")
        for after in re.split(r", | or ", row[1])
        if after != "the same"
    }
    assert drawn == told
    states = {row[0] for row in table_under(STATES, "## States")}
    assert {state for arrow in drawn for state in arrow} - {""} == states


def test_every_script_has_its_row() -> None:
    """States names each script, and none that is not there."""
    named = set(re.findall(r"`(\w+\.lua)`", STATES.read_text()))
    assert named == {file.name for file in (PACKAGE / "scripts").glob("*.lua")}
    on_the_page = set(re.findall(r"\b(\w+\.lua)\b", PAGE.read_text()))
    assert on_the_page <= named
