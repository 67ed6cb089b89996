"""Where an exception was raised in another process: as its cause, it stands in the traceback, as text."""

from __future__ import annotations


class ProcessTraceback(Exception):  # noqa: N818 - it is shown, and never raised
    """The traceback of an exception in the process of its handler. A traceback itself cannot leave its process."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'
