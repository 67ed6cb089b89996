"""Which warnings fail a test: all, but for the deprecated things that somebody else uses."""

from __future__ import annotations

import warnings

import pytest

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def warn(module: str, kind: type[Warning]) -> None:
    """Have the code of a module do something that is warned of."""
    exec("warnings.warn('old', kind)", {"__name__": module, "warnings": warnings, "kind": kind})


@pytest.mark.parametrize("kind", DEPRECATIONS)
@pytest.mark.parametrize("module", ["streamq", "streamq.client.link", "tests.test_tasks", "__main__"])
def test_what_our_own_code_calls_that_is_deprecated_is_an_error(module, kind):
    """It is ours to mend before the next release of a dependency; `__main__` are the programs of the pages."""
    with pytest.raises(kind):
        warn(module, kind)


@pytest.mark.filterwarnings("ignore:old")  # shown in every run, else
@pytest.mark.parametrize("kind", DEPRECATIONS)
@pytest.mark.parametrize("module", ["redis.asyncio", "pydantic._internal", "streamqueue"])
def test_what_dependencies_do_to_each_other_is_not(module, kind):
    """A release of one of them would fail every test, and nothing of ours had changed."""
    warn(module, kind)


@pytest.mark.parametrize("kind", [UserWarning, RuntimeWarning, ResourceWarning])
def test_anything_else_is_an_error_wherever_it_comes_from(kind):
    """A coroutine that is not awaited, a file that is not closed."""
    with pytest.raises(kind):
        warn("redis.asyncio", kind)
