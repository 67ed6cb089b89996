"""The channel between a supervisor and its child: a socket pair that carries one JSON object per line.

The supervisor sends the settings, and later stop levels: 1 drain, 2 now. The child sends the source files
that it has loaded, and that it is ready. When the supervisor ends for any reason, the kernel closes its
end, and the child drains: no child outlives its supervisor. Signals cannot do this, and Ctrl-C in a
terminal reaches parent and child, so it would count twice.
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

_EXIT_MARGIN = 15.0  # seconds beyond the grace period until a child without a supervisor exits


class SupervisorChannel:
    """The child's end of the channel."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # child processes of the worker must not inherit it
        self._socket = socket.socket(fileno=fd)
        self._lines = self._socket.makefile("rb")
        self.settings = Settings.unpack(self._lines.readline())

    def __repr__(self) -> str:
        return f"<SupervisorChannel fd={self._socket.fileno()}>"

    def send(self, **message: Any) -> None:
        """Send a message to the supervisor. Do nothing if the supervisor is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def on_stop(self, callback: Callable[[int], None]) -> None:
        """Call `callback` with the stop level, from a thread, whenever the supervisor sends one."""
        threading.Thread(target=self._read_commands, args=(callback,), name="streamq channel", daemon=True).start()

    def _read_commands(self, callback: Callable[[int], None]) -> None:
        try:
            for line in self._lines:
                callback(int(json.loads(line)["stop"]))
        except OSError:
            pass
        callback(1)
        # The supervisor is gone. Exit even if a handler blocks the event loop.
        time.sleep(self.settings.grace + _EXIT_MARGIN)
        os._exit(1)
