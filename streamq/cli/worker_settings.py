"""The settings of a worker process, as one value that can be sent to a child process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from streamq.cli.server_options import ServerOptions

Backend = Literal["asyncio", "trio"]


def in_process(url: str) -> bool:
    """Is the server of this URL one in the process, which ends with it and which no other process reaches?"""
    return url.startswith("memory:") or url.rstrip("/") == "embedded:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `streamq worker`, checked as far as possible without importing user code.

    `weights` are the weights of the tiers to serve; None serves all tiers with their own weights. `listeners` and
    `process_initializer` are MODULE:NAME. `metrics` and `statsd` are a host and a port. `explicit_logging`
    names those of `log_format` and `log_level` that were given. `first` is False in child processes that do not print
    the banner. `grace`, `lease` and `unknown_wait` are seconds. `max_rss` (bytes) and
    `max_tasks` are what a process may take before it is replaced.
    """

    modules: tuple[str, ...]
    server: ServerOptions
    weights: dict[str, int | None] | None = None
    concurrency: int = 100
    max_prefetch: int = 500
    prefetch_bytes: int = 64 << 20
    backend: Backend = "asyncio"
    uvloop: bool | None = None
    processes: int = 1
    task_processes: int | None = None
    max_tasks_per_process: int | None = None
    process_max_rss: int | None = None
    process_initializer: str | None = None
    burst: bool = False
    grace: float = 25.0
    lease: float = 30.0
    max_crashes: int = 3
    unknown_wait: float = 300.0
    reload: bool = False
    max_rss: int | None = None
    max_tasks: int | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    log_failures: str = "info"
    explicit_logging: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    name: str | None = None
    metrics: tuple[str, int] | None = None
    statsd: tuple[str, int] | None = None
    first: bool = True

    @property
    def supervised(self) -> bool:
        """Do child processes run the tasks?"""
        return self.processes > 1 or self.reload or self.recycles

    @property
    def recycles(self) -> bool:
        """Is a process replaced that has grown too large, or has run so many tasks?"""
        return self.max_rss is not None or self.max_tasks is not None

    def pack(self) -> bytes:
        """Return the settings as one line of JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, line: bytes) -> Settings:
        """Read what `pack` wrote."""
        values = {name: _unlisted(value) for name, value in json.loads(line).items()}
        server = {name: _unlisted(value) for name, value in values.pop("server").items()}
        return cls(server=ServerOptions(**server), **values)


def _unlisted(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
