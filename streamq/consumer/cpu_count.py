"""How many CPU cores this process may use. `--processes auto` starts that many workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(own_cgroup: Path = _OWN_CGROUP, cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Return how many CPU cores this process may use, at least one.

    That is the number of cores in its affinity mask, or less if a control group (version 2: a container or
    a systemd unit) has a lower quota. One process more than that would make all processes wait for the quota.
    """
    return max(1, int(min([float(_affinity_count()), *_cgroup_limits(own_cgroup, cgroup_root)])))


def _affinity_count() -> int:
    count = getattr(os, "process_cpu_count", None)  # Python 3.13; it heeds PYTHON_CPU_COUNT
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_limits(own_cgroup: Path, cgroup_root: Path) -> Iterator[float]:
    """Yield the core limit of this process's control group and of each parent group that has one."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = Path(line.removeprefix("0::/"))
            for folder in (group, *group.parents):
                try:
                    quota, period = (cgroup_root / folder / "cpu.max").read_text().split()
                except (OSError, ValueError):  # the root group has no limit; a container does not see its parent groups
                    continue
                if quota != "max":
                    yield int(quota) / int(period)
