"""Finds the source files that a program has loaded, and detects changes to them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


def loaded_sources() -> list[str]:
    """Return the source files of loaded modules, except those of Python and of installed packages."""
    installed = installed_folders()
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(
        name for name in files if isinstance(name, str) and name.endswith(".py") and not name.startswith(installed)
    )


def installed_folders() -> tuple[str, ...]:
    """Return the folders of Python's library and of installed packages."""
    import sysconfig  # noqa: PLC0415 - keeps the commands light that load nothing

    return tuple({f"{path}/" for name, path in sysconfig.get_paths().items() if "lib" in name})


def relative_name(name: str) -> str:
    """Return a file name relative to the current directory, if the file is below it."""
    path, here = Path(name), current_directory()
    return str(path.relative_to(here)) if here is not None and path.is_relative_to(here) else name


def current_directory() -> Path | None:
    """Return the current directory, None if it has been removed, as after a deploy."""
    try:
        return Path.cwd()
    except OSError:
        return None


class SourceWatch:
    """Tells which files changed since the last call, by modification time and size: one stat per file."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int] | None] = {}

    def __repr__(self) -> str:
        return f"<SourceWatch of {len(self._seen)} files>"

    def watch(self, files: Iterable[str]) -> None:
        """Watch these files as well. Earlier changes do not count."""
        for name in files:
            self._seen.setdefault(name, _mtime_and_size(name))

    def changed_files(self) -> list[str]:
        """Return the files that changed, appeared or disappeared since the last call."""
        changed = []
        for name, before in self._seen.items():
            now = _mtime_and_size(name)
            if now != before:
                self._seen[name] = now
                changed.append(name)
        return changed


def _mtime_and_size(name: str) -> tuple[int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
