"""The line between a supervisor and its child: a socket pair that carries one JSON object per line.

Down go the settings, then how urgently to stop: 1 drain, 2 now. Up come the source files that
the child has loaded, and that it is ready. When the supervisor is gone, however it ended, the
kernel closes its end, and the child drains: no orphan is left behind. Signals could not say
that, and a terminal's Ctrl-C, which reaches parent and child alike, would count twice.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from streamq.cli.worker_settings import Settings

_MARGIN = 15.0  # seconds beyond the grace period for a child whose supervisor is gone


class Leash:
    """The child's end."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # the child's own children have no part in this
        self._socket = socket.socket(fileno=fd)
        self._lines = self._socket.makefile("rb")
        self.settings = Settings.unpack(self._lines.readline())

    def __repr__(self) -> str:
        return f"<Leash fd={self._socket.fileno()}>"

    def say(self, **what: Any) -> None:
        """Tell the supervisor something; if it is gone, nobody needs to know."""
        try:
            self._socket.sendall(json.dumps(what).encode() + b"\n")
        except OSError:
            return

    def obey(self, urge: Callable[[int], None]) -> None:
        """Call `urge` from a thread whenever the supervisor wants this process to stop."""
        threading.Thread(target=self._listen, args=(urge,), name="streamq leash", daemon=True).start()

    def _listen(self, urge: Callable[[int], None]) -> None:
        try:
            for line in self._lines:
                urge(int(json.loads(line)["stop"]))
        except OSError:
            pass
        urge(1)
        # The supervisor is gone. A handler that blocks the event loop must not keep us alive.
        time.sleep(self.settings.grace + _MARGIN)
        os._exit(1)
