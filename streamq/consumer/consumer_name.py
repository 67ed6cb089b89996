"""The name of a member of the consumer group."""

from __future__ import annotations

import os
import secrets
import socket


def consumer_name(given: str | None = None) -> str:
    """Return the given name, or one made of host, process id and a random part."""
    return given or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
