"""The filters of warnings, which all runs of a process share: what a run has changed in them is taken back."""

from __future__ import annotations

import warnings
from typing import Any

from streamq.diagnostics.safe_log import SafeLog

log = SafeLog("streamq")


class WarningFilters:
    """The filters of warnings, which all runs of a process share, as they were when no run had changed them.

    `known` is compared with them after each run. What a run has added to the list, or taken from it, is undone when a
    run ends. The list that `warnings.catch_warnings` puts in its place is left alone: it goes with its block.
    """

    def __init__(self) -> None:
        self.known: list[Any] = []
        self.list: Any = None
        self.adopt()

    @property
    def replaced(self) -> bool:
        """Is somebody inside of `warnings.catch_warnings`?"""
        return warnings.filters is not self.list

    def adopt(self) -> None:
        """Take the filters as they are: no run goes on that may have changed them."""
        self.list = warnings.filters
        self.known = list(self.list)

    def put_back(self) -> None:
        """Put the list back if a run has left none: Python itself could not warn, and no run could be looked after."""
        if not isinstance(getattr(warnings, "filters", None), list):
            log.warning(
                "warnings.filters was no list of filters any more, after a run, and is put back", event="left_behind"
            )
            warnings.filters = self.list
            self.list[:] = self.known

    def restore(self, name: str) -> None:
        """Undo what a run has changed; `name` is the task that has just ended."""
        if not isinstance(warnings.filters, list):
            self.put_back()
        if self.replaced:
            return
        log.warning(
            "warning filters were changed while the task %s ran, and are put back: use warnings.catch_warnings() in a "
            "handler, and import modules that change filters before the worker starts", name, event="left_behind",
        )  # fmt: skip
        self.list[:] = self.known
        with warnings.catch_warnings():  # entered and left, it makes the interpreter notice the change
            pass


filters = WarningFilters()
