"""Servers that need no installation: `memory://` in this process, `embedded://` in a process of its own.

- `memory://` is a private dataset. `memory://name` is shared by the whole process.
- `embedded://` is a real Valkey server process that ends with this one. With a path, as in
  `embedded:///var/lib/app`, it keeps its data there, and processes with the same path share one
  server.

Both need the extra `embedded`, which is imported when a server is made, not before.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from streamq.embedded.memory_server import MemoryServer
from streamq.embedded.valkey_process import EmbeddedServer
from streamq.errors import ConfigurationError

__all__ = ["EmbeddedServer", "MemoryServer", "open_embedded"]


def open_embedded(url: str) -> MemoryServer | EmbeddedServer:
    """Return the server of a `memory://` or `embedded://` URL.

    A MemoryServer is ready. An EmbeddedServer must be started. Raises ConfigurationError for any
    other URL, and MissingExtraError without the extra `embedded`.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r}: the URL of an embedded server has no options; remove the part after ? or #")
    match parts.scheme:
        case "memory" if parts.path in {"", "/"}:
            return MemoryServer.named(unquote(parts.netloc))
        case "memory":
            raise ConfigurationError(f"{url!r}: write memory:// or memory://name")
        case "embedded" if not parts.netloc:
            return EmbeddedServer(unquote(parts.path).rstrip("/") or None)
        case "embedded":
            raise ConfigurationError(f"{url!r}: write embedded:// or, with three slashes, embedded:///path/to/data")
        case _:
            raise ConfigurationError(f"{url!r} is not the URL of an embedded server; write memory:// or embedded://")
