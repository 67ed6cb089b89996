"""One worker process: `python -m tests.faults.member '{"url": ..., "backend": ..., ...}'`.

`Setting` is what the JSON object may say. The name of the consumer and the log are in the
environment (see `handlers`), so that child processes of the worker know them too.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from typing import Self

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How one member works. `clock` (s) is how far its wall clock is off; `version` is that of the app.

    `unknown_pause` (s) is the pause between two looks at a task that it does not know.
    """

    url: str
    backend: str
    lease: float = 1.5
    concurrency: int = 50
    grace: float = 3.0
    prefetch: int = 1000
    max_crashes: int = 3
    unknown_wait: float = 300.0
    connect_timeout: float = 1.0
    reply_timeout: float = 2.0
    unknown_pause: float = 0.3
    clock: float = 0.0
    version: str = "all"

    def to_json(self) -> str:
        """Return the argument that `from_json` reads."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**orjson.loads(text))


def set_clock(offset: float) -> None:
    """Put this process's wall clock off; the monotonic one stays."""
    true = time.time
    time.time = lambda: true() + offset


if __name__ == "__main__":
    _setting = Setting.from_json(sys.argv[1])
    if _setting.clock:
        set_clock(_setting.clock)  # before streamq is imported, which may keep the function
    from tests.faults.serving import run

    run(_setting)
