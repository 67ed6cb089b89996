"""A worker of the command line, which tells how many runs have ended. What counts is in `consumer/runner_pool.py`."""

from __future__ import annotations

from streamq.worker import Worker


class CountedWorker(Worker):
    """A worker whose finished runs can be read, in any thread."""

    @property
    def runs(self) -> int:
        """How many runs have ended so far, well or not: in the event loop, in threads and in processes.

        Each task of a batch counts, and each attempt. What never began does not: a task that is held back, expired, or
        unknown.
        """
        return 0 if self._consumer is None else self._consumer.buffer.runs
