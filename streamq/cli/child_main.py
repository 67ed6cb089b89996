"""A worker process that a supervisor started: `python -m streamq.cli.child_main FD MODULE...`.

The settings come over the leash, not as arguments, so that `ps` shows no password. The modules
are there for whoever looks at `ps`.
"""

from __future__ import annotations

import sys

from streamq.cli.supervisor_channel import Leash
from streamq.cli.usage_errors import Problem
from streamq.cli.worker_process import serve

if __name__ == "__main__":
    leash = Leash(int(sys.argv[1]))
    try:
        serve(leash.settings, leash)
    except Problem as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
