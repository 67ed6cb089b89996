"""The input of the demo: all source files of the standard library, sorted into tiers.

A module's rank is measured: it is the number of library files, without tests, that import it.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TIERS: Final[tuple[str, ...]] = ("critical", "standard", "bulk")

_CRITICAL_SHARE: Final = 0.1  # of all files
_IMPORTS: Final = re.compile(rb"^\s*(?:from\s+([\w.]+)\s+import|import\s+([\w., ]+))", re.MULTILINE)
_INSTALLED: Final = {"site-packages", "dist-packages", "__pycache__"}
_TESTS: Final = {"test", "tests", "idle_test"}
# The bulk tier if a distribution has removed test/: packages that are rarely imported.
_RARE: Final = {"idlelib", "encodings", "lib2to3", "distutils", "turtledemo", "pydoc_data", "ensurepip", "tkinter"}
_SHARES: Final = {"critical": 0.2, "standard": 0.4, "bulk": 0.4}  # of a limited run


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files by tier, relative to `root`. `bulk_is` describes the bulk tier in words."""

    root: Path
    files: dict[str, tuple[str, ...]]
    most_imported: tuple[tuple[str, int], ...]
    bulk_is: str

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))


def corpus(limit: int | None = None) -> Corpus:
    """Find the files and sort them into tiers. Reads each file once, for its imports."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    names = sorted(str(path) for path in found if _INSTALLED.isdisjoint(path.parts))
    tests = [name for name in names if not _TESTS.isdisjoint(Path(name).parts)]
    bulk, bulk_is = set(tests), "test/ and the tests of packages"
    if len(tests) < len(names) // 20:
        bulk = {name for name in names if Path(name).parts[0] in _RARE} | set(tests)
        bulk_is = f"{', '.join(sorted({Path(name).parts[0] for name in bulk}))} (this Python ships no test/)"
    ranks = _ranks(root, names, [name for name in names if name not in bulk])
    ranked = sorted((name for name in names if name not in bulk and ranks[name]), key=lambda name: (-ranks[name], name))
    critical = ranked[: round(len(names) * _CRITICAL_SHARE)]
    chosen = set(critical) | bulk
    files = {"critical": critical, "standard": [name for name in names if name not in chosen], "bulk": sorted(bulk)}
    if limit is not None and limit < len(names):
        files = {tier: _sample(files[tier], round(limit * _SHARES[tier])) for tier in TIERS}
    most = tuple((name, ranks[name]) for name in critical[:5])
    return Corpus(root, {tier: tuple(files[tier]) for tier in TIERS}, most, bulk_is)


def _ranks(root: Path, names: Sequence[str], importing: Sequence[str]) -> Counter[str]:
    """Return how many of the `importing` files import each file."""
    homes: dict[str, str] = {}
    for name in names:
        path = Path(name)
        parts = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
        homes[".".join(parts)] = name
    ranks: Counter[str] = Counter()
    for name in importing:
        found = {word for match in _IMPORTS.finditer(_source(root / name)) for word in _modules(match)}
        ranks.update({homes[module] for module in found if module in homes} - {name})
    return ranks


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _modules(match: re.Match[bytes]) -> list[str]:
    if match[1]:
        return [match[1].decode(errors="replace")]
    return [part.split()[0] for part in match[2].decode(errors="replace").split(",") if part.split()]


def _sample(names: Sequence[str], count: int) -> list[str]:
    """Return every n-th file, after some files with names that mark them as bad input."""
    bad = [name for name in names if "bad" in Path(name).name or "lib2to3/tests/data" in name]
    rest = [name for name in names if name not in bad]
    bad = bad[: max(1, count // 4)]
    wanted = max(0, min(count - len(bad), len(rest)))
    step = len(rest) / wanted if wanted else 1.0
    return [*bad, *(rest[int(at * step)] for at in range(wanted))]
