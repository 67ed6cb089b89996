"""What a worker and a process of its handlers send each other: frames on a socket of their own.

A frame is its kind, the number of the call that it belongs to, and its length, then its body. Nothing else is written
to the socket. So what cannot be a frame shows that somebody else has written there, and the process is given up.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

HEADER: Final = struct.Struct(">BQQ")  # kind, call, bytes of the body
LONGEST: Final = 1 << 40  # bytes of a body: no memory has more


class Kind(IntEnum):
    """What a frame says. No text begins with such a byte."""

    SETUP = 0xA1  # worker: what the process begins with
    RUN = 0xA2  # worker: run a task
    READY = 0xA3  # process: it may be asked
    FAILED = 0xA4  # process: it cannot begin, for this reason, and ends
    BEGUN = 0xA5  # process: the call has arrived; what happens from now on is its task's
    LOG = 0xA6  # process: a record of a logger
    PROGRESS = 0xA7  # process: a report of progress
    ANSWER = 0xA8  # process: the outcome of the call


KINDS: Final = {int(kind): kind for kind in Kind}


class SpoiledError(Exception):
    """Raised for bytes that are no frame."""


def frame(kind: Kind, call: int, body: bytes = b"") -> bytes:
    """Return a frame."""
    return HEADER.pack(kind, call, len(body)) + body


def parse_header(header: bytes) -> tuple[Kind, int, int]:
    """Return the kind, the call and the length of a frame. Raises SpoiledError if it is none."""
    number, call, length = HEADER.unpack(header)
    if number not in KINDS or length > LONGEST:
        raise SpoiledError
    return KINDS[number], call, length


class How(NamedTuple):
    """How a function is called. `batch`: with a list of items, and each item of a list that it returns has an outcome
    of its own. `validate`: by its annotations.
    """

    batch: bool
    validate: bool


class Setup(NamedTuple):
    """What a process begins with.

    `modules` are those of the tasks: they are imported before the first run, so that its timeout does not count that.
    `main` is the name or the path of the program's main module. `levels` are those of loggers, by name, `disabled` is
    what `logging.disable` has set, `warnings`: they are logged (`captureWarnings`). `initializer` is a module and the
    qualified name of a function in it.
    """

    modules: tuple[str, ...]
    main: tuple[str, str] | None
    levels: dict[str, int]
    disabled: int
    warnings: bool
    initializer: tuple[str, str] | None


class Call(NamedTuple):
    """One run. `delivery` are the arguments of a `Delivery`, None for a batch."""

    task: str
    module: str
    qualname: str
    packed: bytes
    how: How
    delivery: tuple[int, str, bytes, list[bytes], bool, tuple[str, ...]] | None
