"""Which source files a program has loaded, and when they change."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def loaded_sources() -> list[str]:
    """Return the files of the modules that are the program's own: not Python's, not installed ones."""
    installed = tuple({f"{path}/" for name, path in sysconfig.get_paths().items() if "lib" in name})
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(
        name for name in files if isinstance(name, str) and name.endswith(".py") and not name.startswith(installed)
    )


def short(name: str) -> str:
    """Return a file's name from here on, if it is here."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


class Changes:
    """Tells which of some files changed since the last look: by time and size, one stat each."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int] | None] = {}

    def __repr__(self) -> str:
        return f"<Changes in {len(self._seen)} files>"

    def watch(self, files: Iterable[str]) -> None:
        """Watch these, too. What changed before is no news."""
        for name in files:
            self._seen.setdefault(name, _stamp(name))

    def look(self) -> list[str]:
        """Return the files that changed, came or went since the last look."""
        changed = []
        for name, before in self._seen.items():
            now = _stamp(name)
            if now != before:
                self._seen[name] = now
                changed.append(name)
        return changed


def _stamp(name: str) -> tuple[int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
