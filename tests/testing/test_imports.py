"""The virtual clock is loaded when it is used, and no backend before that."""

from __future__ import annotations

import pytest

import streamq.testing
from tests.test_import_cost import modules_after


def test_the_clock_is_loaded_on_first_use():
    assert "streamq.testing.clock" not in modules_after("import streamq.testing")
    assert "streamq.testing.clock" in modules_after("from streamq.testing import VirtualTime")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_clock_adds_no_backend(backend):
    """Importing it loads no event loop that the package itself does not load."""
    before = modules_after("import streamq.testing")
    after = modules_after("from streamq.testing import VirtualTime")
    assert (backend in after) == (backend in before)


def test_the_package_has_no_other_names():
    unknown = "nothing"
    with pytest.raises(AttributeError, match=unknown):
        getattr(streamq.testing, unknown)
    assert "VirtualTime" in dir(streamq.testing)
