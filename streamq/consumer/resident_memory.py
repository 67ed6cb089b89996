"""How much memory this process has."""

from __future__ import annotations

import errno
import os
import sys


def resident_bytes() -> int:
    """Return the memory that this process has: its resident set, without that of its children.

    Where there is no /proc, it is the most that the process ever had. 0 if the system has no descriptor to look: the
    next look tells.
    """
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - many times, for years
            return int(file.read(200).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return 0
        import resource  # noqa: PLC0415 - not needed on Linux

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
