"""The names of the members of a consumer group.

Each start of a worker is a consumer of its own, also under a name that was given. What a dead worker held is then
taken over as from any other, and counts as a crash; and two workers of one name do not share a pending list.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from typing import Final

from streamq.wire.names import BLANKS, UNSEEN, check_name

_LONGEST_HOST: Final = 60  # characters of the host's name
_START: Final = 6  # random bytes that tell one start from another
_STARTED_NAME: Final = re.compile(rf"(.+)-[0-9a-f]{{{2 * _START}}}", re.DOTALL)


def consumer_name(given: str | None = None) -> str:
    """Return a new name of a consumer: the given name, or that of host and process, and a part that is new each time.

    Raises ConfigurationError if the given name cannot be used.
    """
    if given is None:
        host = re.sub(f"[{UNSEEN}{BLANKS} |]", "_", socket.gethostname())[:_LONGEST_HOST]
        given = f"{host or 'host'}-{os.getpid()}"
    return f"{check_name('consumer', given, what='name')}-{secrets.token_hex(_START)}"


def name_given(consumer: str) -> str:
    """Return the name that a worker was given, from the name of its consumer."""
    found = _STARTED_NAME.fullmatch(consumer)
    return found[1] if found else consumer
