"""Modules with objects that raise when they are looked at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamq.cli.loading import LoadingError, load

PROXY = '''
from streamq import task


@task
async def hello(): ...


class LocalProxy:
    """As those of web frameworks: it asks its context for everything."""

    def _raise(self, *_):
        raise RuntimeError("Working outside of application context.")

    __class__ = property(_raise)
    __getattr__ = __eq__ = __hash__ = __repr__ = __iter__ = _raise


current_app = broker = middleware = LocalProxy()
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The name of a module with a lazy proxy."""
    (tmp_path / "has_a_proxy.py").write_text(PROXY)
    (tmp_path / "is_a_proxy.py").write_text(PROXY + "\nimport sys\nsys.modules[__name__] = current_app\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "has_a_proxy"
    for name in ("has_a_proxy", "is_a_proxy"):
        sys.modules.pop(name, None)


def test_a_lazy_proxy_is_passed_over(module):
    """Its `__class__` raised, and so did `streamq worker`."""
    loaded = load([module])
    assert [task.name for task in loaded.tasks] == ["hello"]
    assert loaded.broker is None
    assert not list(loaded.middleware)
    assert load([f"{module}:hello"]).tasks == loaded.tasks


def test_what_only_claims_to_be_a_task_is_passed_over(tmp_path, monkeypatch):
    """A mock of a task, in a module of tasks."""
    lines = (
        "from unittest.mock import Mock",
        "from streamq import Task, task",
        "fake = Mock(spec=Task)",
        "@task",
        "async def ok(): ...",
    )
    (tmp_path / "has_a_mock.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert [task.name for task in load(["has_a_mock"]).tasks] == ["ok"]
    finally:
        sys.modules.pop("has_a_mock", None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("has_a_proxy:current_app", "cannot be looked through for tasks.*RuntimeError: Working outside"),
        ("has_a_proxy:current_app.task", "cannot be looked through for tasks.*RuntimeError: Working outside"),
        ("is_a_proxy", "has no tasks"),
    ],
)
def test_one_that_is_asked_for_tasks_is_one_line(module, name, says):
    """With what it raised."""
    with pytest.raises(LoadingError, match=f"{name} {says}"):
        load([name])


@pytest.mark.parametrize(
    ("line", "warned"), [("import json as broker", True), ("from streamq import middleware", False)]
)
def test_an_imported_module_of_such_a_name_is_not_meant(tmp_path, monkeypatch, caplog, line, warned):
    """It is named in the log: the broker may be in it. One of ours is no mistake."""
    (tmp_path / "imports_one.py").write_text(f"from streamq import task\n{line}\n\n@task\nasync def hello(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        loaded = load(["imports_one"])
    finally:
        sys.modules.pop("imports_one", None)
    assert loaded.broker is None
    assert len(loaded.middleware) == 0
    assert ("imports_one.broker is a module, so the worker does not use it" in caplog.text) == warned
