"""The settings of a worker process, as one value that can be sent to a child process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from streamq.cli.options import ServerOptions

Backend = Literal["asyncio", "trio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `streamq worker`, checked as far as possible without importing user code.

    `weights` are the weights of the tiers to serve; None serves all tiers with their own weights.
    `explicit_options` are the names of the server options that were given on the command line, not by the
    environment. `first` is False in child processes that do not print the banner. `grace`, `lease` and `unknown_wait`
    are seconds.
    """

    modules: tuple[str, ...]
    server: ServerOptions
    explicit_options: tuple[str, ...] = ()
    weights: dict[str, int | None] | None = None
    concurrency: int = 100
    prefetch_bytes: int = 64 << 20
    backend: Backend = "asyncio"
    uvloop: bool | None = None
    processes: int = 1
    burst: bool = False
    grace: float = 25.0
    lease: float = 30.0
    max_crashes: int = 3
    unknown_wait: float = 300.0
    reload: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    log_failures: str = "info"
    name: str | None = None
    first: bool = True

    @property
    def supervised(self) -> bool:
        """Do child processes run the tasks?"""
        return self.processes > 1 or self.reload

    def pack(self) -> bytes:
        """Return the settings as one line of JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, line: bytes) -> Settings:
        """Read what `pack` wrote."""
        values = json.loads(line)
        server = ServerOptions(**values.pop("server"))
        return cls(
            modules=tuple(values.pop("modules")),
            server=server,
            explicit_options=tuple(values.pop("explicit_options")),
            **values,
        )
