"""Every test here runs in virtual time, under asyncio and under trio."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from streamq.testing.clock import VirtualTime
from tests.timed.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def virtual() -> VirtualTime:
    """The time that the test goes by."""
    return VirtualTime()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest, virtual: VirtualTime) -> tuple[str, dict[str, Any]]:
    """Both backends, with a loop that goes by that time."""
    return request.param, virtual.options(request.param)


@pytest.fixture
def stage(virtual: VirtualTime, anyio_backend: Any) -> Iterator[Stage]:
    """An empty queue."""
    with contextlib.closing(Stage(virtual)) as stage:
        yield stage
