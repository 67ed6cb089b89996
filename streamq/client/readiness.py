"""Being called when a socket can be read, without a task that waits for it.

anyio can only have a task wait. Under asyncio that costs, for every read, two changes of the selector and a
switch of tasks; a callback of the loop costs neither.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio.lowlevel import current_token

Readable = Callable[[float], None]
"""Called with the time of the event loop, in s, as `anyio.current_time` tells it."""


def on_readable(sock: socket.socket, readable: Readable) -> Callable[[], None] | None:
    """Have `readable` called whenever `sock` can be read, and return what ends that; call it before the socket closes.

    None where the event loop has no such callbacks (trio, asyncio on Windows): have a task wait there.
    """
    loop: Any = current_token().native_token
    if not hasattr(loop, "add_reader"):
        return None
    try:
        loop.add_reader(sock, lambda: readable(loop.time()))
    except NotImplementedError:
        return None

    def end() -> None:
        with suppress(RuntimeError):  # the loop is closed: it calls nobody any more
            loop.remove_reader(sock)

    return end
