"""Servers that need no installation: `memory://` in the process, `embedded://` beside it.

- `memory://` is a private dataset, `memory://name` one that the whole process shares.
- `embedded://` is a real Valkey server process that ends with this one; with a path,
  `embedded:///var/lib/app`, it keeps its data there, and processes that name the same path
  share one server.

Both need the extra `embedded`; it is imported when a server is made, not before.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from streamq.embedded.memory_server import Dial, MemoryServer
from streamq.embedded.valkey_process import EmbeddedServer
from streamq.errors import ConfigurationError

__all__ = ["Dial", "EmbeddedServer", "MemoryServer", "open_embedded"]


def open_embedded(url: str) -> MemoryServer | EmbeddedServer:
    """Return the server that a `memory://` or `embedded://` URL stands for.

    A MemoryServer is ready; an EmbeddedServer has yet to be started. Raises
    ConfigurationError for any other URL, MissingExtraError without the extra `embedded`.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r}: an embedded server takes no options in its URL")
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
            raise ConfigurationError(f"{url!r} is not memory:// or embedded://")
