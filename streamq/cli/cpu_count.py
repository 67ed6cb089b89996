"""How many cores this process may use: as many workers `--processes auto` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_QUOTAS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores(own_group: Path = _OWN_GROUP, quotas: Path = _QUOTAS) -> int:
    """Return how many cores this process may keep busy, at least one.

    Those that it may run on, or fewer if a control group that it is in (version 2; a container's, a
    unit's of systemd) may use fewer: a process more would have all of them wait for their quota.
    """
    return max(1, int(min([float(_allowed()), *_limits(own_group, quotas)])))


def _allowed() -> int:
    count = getattr(os, "process_cpu_count", None)  # Python 3.13; it heeds PYTHON_CPU_COUNT
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits(own_group: Path, quotas: Path) -> Iterator[float]:
    """Yield how many cores our control group may use, and each that it is in, where that is limited."""
    try:
        lines = own_group.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = Path(line.removeprefix("0::/"))
            for folder in (group, *group.parents):
                try:
                    quota, period = (quotas / folder / "cpu.max").read_text().split()
                except (OSError, ValueError):  # the outermost has no limit; a container does not see what is around it
                    continue
                if quota != "max":
                    yield int(quota) / int(period)
