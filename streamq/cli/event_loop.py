"""The event loop of `streamq worker` under asyncio: no task of a handler ends it.

asyncio ends its loop if any task in it, or any function that it calls, raises SystemExit or KeyboardInterrupt, whoever
waits for that task. trio raises it where the task is waited for. Here the loop goes on in that case, so both are alike:
a task group, `gather` or `await` in the handler gets the exception, and its run fails. Nothing is lost meanwhile: what
the loop was to do next is still in its queue. Nor does `loop.stop()` end it.

Signals are no exceptions in this process (see `stop_signals`), so none is lost either.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from streamq.diagnostics.safe_log import SafeLog

log = SafeLog("streamq.cli")


def loop_for_handlers(*, use_uvloop: bool) -> Any:
    """Return a new event loop of asyncio, or of uvloop, that only the end of its main task ends."""
    # Imported by name: nothing in streamq imports a backend.
    loop = import_module("uvloop" if use_uvloop else "asyncio").new_event_loop()
    run = loop.run_until_complete
    loop.run_until_complete = lambda main: _run_to_its_end(loop, run, main)
    return loop


def _run_to_its_end(loop: Any, run: Callable[[Any], Any], main: Any) -> Any:
    """Run the loop until `main` has ended, and return its result."""
    if not hasattr(main, "done"):
        main = loop.create_task(main)
    while True:
        try:
            return run(main)
        except (SystemExit, KeyboardInterrupt) as error:
            if main.done():
                return main.result()
            what = type(error).__name__
            log.exception(
                "a task of a handler, or a function called by the event loop, raised %s: it goes on",
                what,
                event="stray_error",
            )
        except RuntimeError:
            if main.done() or loop.is_closed() or loop.is_running():
                raise
            log.error("the event loop was stopped, by a handler: it goes on", event="loop_stopped")  # noqa: TRY400 - the trace is our own
