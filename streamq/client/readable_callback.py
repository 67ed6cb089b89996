"""A callback that the event loop calls when a socket can be read, without a task that waits.

anyio offers only a task that waits. Under asyncio that costs two changes of the selector and a
switch of tasks for every read. A callback of the loop costs neither.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio.lowlevel import current_token

ReadableCallback = Callable[[float], None]
"""Called with the time of the event loop in seconds, as from `anyio.current_time`."""


def on_readable(sock: socket.socket, callback: ReadableCallback) -> Callable[[], None] | None:
    """Have `callback` called whenever `sock` can be read.

    Returns a function that ends this; call it before the socket is closed. Returns None where
    the event loop has no such callbacks (trio, asyncio on Windows): use a task that waits there.
    """
    loop: Any = current_token().native_token
    if not hasattr(loop, "add_reader"):
        return None
    try:
        loop.add_reader(sock, lambda: callback(loop.time()))
    except NotImplementedError:
        return None

    def stop() -> None:
        with suppress(RuntimeError):  # the loop is closed and calls nothing any more
            loop.remove_reader(sock)

    return stop
