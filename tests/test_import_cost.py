"""`import streamq` is cheap: it loads neither Redis' client, nor an extra, nor a backend."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(code):
    """Return the names of all modules that a fresh interpreter has loaded after some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


CORE = "import anyio, orjson, redis.commands"  # what these load by themselves is for them to say
HEAVY = {"redis", "hiredis", "orjson", "anyio", "asyncio", "trio", "pydantic", "fakeredis", "rich", "click", "uvloop"}


def test_importing_the_package_loads_nothing_heavy():
    """SPEC 1: names are loaded on first use."""
    loaded = modules_after("import streamq")
    assert loaded & HEAVY == set()
    assert {name for name in loaded if name.startswith("streamq")} == {"streamq", "streamq.lazy_names"}


def test_declaring_a_task_loads_no_redis_no_extra_and_no_backend():
    """A module of tasks is imported by producers and tests that may have nothing but the core."""
    loaded = modules_after(
        "from streamq import task, Priority, RetryLater, Reject\n@task\nasync def send(to: str): ..."
    )
    assert loaded & (HEAVY - {"orjson"}) == set()


def test_a_broker_and_a_worker_load_no_extra_and_no_backend():
    """pydantic, trio, fakeredis and rich are asked for when they are needed."""
    others = modules_after(CORE)
    loaded = modules_after("from streamq import RedisBroker, Worker\nRedisBroker()") - others
    assert loaded & {"trio", "pydantic", "fakeredis", "rich", "uvloop", "click"} == set()


def test_a_worker_loads_nothing_that_few_tasks_need():
    """What processes and pydantic's types need is most of a MiB, and waits until a task asks for it."""
    others = modules_after(CORE)
    loaded = modules_after("from streamq import RedisBroker, Worker") - others
    assert loaded & {"decimal", "pickle", "anyio.from_thread", "anyio.to_process", "multiprocessing"} == set()


def test_a_command_without_an_app_loads_no_worker(tmp_path):
    """Only `--app`, or a project that names one, pays for the modules of the user and for all that a worker needs."""
    code = "import os\nos.chdir({folder!r})\nfrom streamq.cli.entry import _run\n_run({arguments!r})"
    worker = {"streamq.worker", "streamq.cli.loading", "tomllib"}
    plain = ["dlq", "ls", "--app", ""], ["dlq", "ls", "--help"], ["dlq", "show", "none", "--url", "redis://localhost:1"]
    for arguments in plain:
        assert modules_after(code.format(folder=str(tmp_path), arguments=arguments)) & worker == set(), arguments
    acl = code.format(folder=str(tmp_path), arguments=["acl", "--role", "worker"])
    without = modules_after(acl)
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert modules_after(acl) == without


def test_every_public_name_is_there():
    """Each loads from its home, and `dir` knows them."""
    import streamq

    for name in streamq.__all__:
        assert getattr(streamq, name) is not None
        assert name in dir(streamq)
    assert set(streamq._HOMES) == set(streamq.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = streamq.nothing


def test_no_module_imports_a_backend_by_name():
    """P12: `import asyncio` and `import trio` stand nowhere but where they are named."""
    import re
    from pathlib import Path

    import streamq

    pattern = re.compile(r"^\s*(?:import|from) (?:asyncio|trio)\b", re.MULTILINE)
    root = Path(streamq.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if pattern.search(path.read_text())}
    assert found <= {"cli/backend.py"}, found


def test_a_name_that_a_dependency_lacks_is_told_as_such():
    """Not as if streamq had no such name: a release of a dependency that removed something is found at once."""
    code = (
        "import redis.exceptions\ndel redis.exceptions.NoPermissionError\n"
        "try:\n    from streamq import RedisBroker\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "streamq.RedisBroker cannot be loaded" in done.stdout
    assert "NoPermissionError" in done.stdout
