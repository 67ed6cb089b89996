"""What says that the system has no more: an error, or what caused it, however long the chain of causes."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from streamq.consumer.shortage import is_shortage


def caused(*errors: Exception) -> Exception:
    """Return the first error, each caused by the next."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_a_cause_is_found_at_whatever_depth(length):
    """Deeper than Python goes down by recursion, too."""
    between = [RuntimeError("later") for _ in range(length)]
    assert is_shortage(caused(*between, OSError(errno.EMFILE, "no more")))
    assert not is_shortage(caused(*between, OSError(errno.ENOENT, "no such")))


def test_causes_that_come_round_end():
    first, second = RuntimeError("first"), RuntimeError("second")
    assert not is_shortage(caused(first, second, first))
