"""The documentation, cut into its fenced code blocks.

A comment on the line above a fence says what the block is, where its language does not:

- `<!-- continues -->`: Python that goes on where the block before it ended;
- `<!-- output -->`: what the Python program above prints;
- `<!-- help: worker -->`: what `streamq worker --help` prints;
- `<!-- folders -->`: the folders and what they import (tests/docs/test_architecture.py);
- `<!-- illustration -->`: a picture; nothing can be run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_MARK = re.compile(r"^ *<!-- (.+?) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its fence, from 1."""

    page: Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def place(self) -> str:
        """Where it stands, as an id of a test and as editors jump to it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in order. Raises ValueError for a fence that never ends."""
    blocks = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        indent, fence, language = opening.groups()
        start = at
        while at < len(lines) and lines[at].strip() != fence:
            at += 1
        if at == len(lines):
            raise ValueError(f"{page}:{start}: this fence has no end")
        above = _MARK.match(lines[start - 2]) if start > 1 else None
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[start:at])
        blocks.append(Block(page, start, language.strip(), above[1] if above else "", code))
        at += 1
    return blocks


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@dataclass(frozen=True)
class Program:
    """A complete Python program, and what it is said to print; None if nothing is said."""

    place: str
    code: str
    output: str | None


def programs() -> list[Program]:
    """Return every Python program of the documentation; each runs alone."""
    found: list[Program] = []
    before: Block | None = None
    for block in BLOCKS:
        if block.language == "python":
            # Empty lines in front keep the line numbers of tracebacks those of the page.
            padding = "\n" * block.line
            if block.mark == "continues":
                if not found or before is None or before.page != block.page:
                    raise ValueError(f"{block.place}: there is nothing that it could continue")
                program = found[-1]
                found[-1] = Program(block.place, program.code + padding[program.code.count("\n") :] + block.code, None)
            else:
                found.append(Program(block.place, padding + block.code, None))
            before = block
        elif block.mark == "output":
            if not found or before is None or before.page != block.page:
                raise ValueError(f"{block.place}: there is no program that could print this")
            found[-1] = Program(found[-1].place, found[-1].code, block.code)
    return found


def table_under(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table under a heading, code marks removed."""
    fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    text = "\n" + fenced.sub("", page.read_text())
    section = text.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section, maxsplit=1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    if len(rows) < 3:
        raise ValueError(f"{page}: no table under {heading!r}")
    return [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows[2:]]
