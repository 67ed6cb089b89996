"""What keeps an error from ending more than it is about: loops of middleware, and mistakes of streamq's own."""

from __future__ import annotations

import anyio

from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError
from streamq.middleware import Resident
from streamq.queue.store import Store
from streamq.tasks.retry_policy import Backoff

log = SafeLog("streamq")

_AGAIN = Backoff(base=0.1, factor=2.0, cap=30.0)  # seconds until the loop of a middleware is started again


async def live_forever(resident: Resident, store: Store) -> None:
    """Run the loop of a middleware. What it raises is logged, and it is started again: it ends no worker."""
    failures = 0
    while True:
        try:
            return await resident.live(store)
        except (Exception, SystemExit) as error:
            failures += 1
            pause = _AGAIN.ceiling(failures)
            log.exception("the loop of %r raised; it is started again in %g s", resident, pause, error=error)
        await anyio.sleep(pause)


def is_own_error(error: BaseException) -> bool:
    """Is this a mistake of ours, and not a cancellation or an answer of the server?"""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_own_error, error.exceptions))
    return isinstance(error, Exception) and not isinstance(error, BrokerError)


def single_exception(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in a group of one; the group itself if there are more."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return group if isinstance(found, BaseExceptionGroup | anyio.get_cancelled_exc_class()) else found
