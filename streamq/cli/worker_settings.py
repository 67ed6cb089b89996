"""What a worker process is to do, as one value that can be sent to a child process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from streamq.cli.options import Where

Backend = Literal["asyncio", "trio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `streamq worker`, checked as far as that goes without importing anything.

    `weights` are those of the tiers that are served, None for all with their own. `commanded`
    are the names of server options that were given on the command line and not by the
    environment. `first` is False in the children that need not print a banner.
    """

    modules: tuple[str, ...]
    where: Where
    commanded: tuple[str, ...] = ()
    weights: dict[str, int | None] | None = None
    concurrency: int = 100
    backend: Backend = "asyncio"
    uvloop: bool | None = None
    processes: int = 1
    burst: bool = False
    grace: float = 25.0
    lease: float = 30.0
    reload: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    name: str | None = None
    first: bool = True

    @property
    def supervised(self) -> bool:
        """Whether the work is done by child processes."""
        return self.processes > 1 or self.reload

    def pack(self) -> bytes:
        """Return the settings as one line of JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, line: bytes) -> Settings:
        """Read what `pack` wrote."""
        values = json.loads(line)
        where = Where(**values.pop("where"))
        return cls(
            modules=tuple(values.pop("modules")), where=where, commanded=tuple(values.pop("commanded")), **values
        )
