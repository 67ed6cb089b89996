"""`@task`: a function with a name and a policy."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import anyio
import pytest

from streamq import Backoff, Cron, Options, Priority, Task, TaskRef, batch_task, task
from streamq.errors import ConfigurationError, TaskNameError


@task
async def plain(to: str, n: int = 1) -> dict:
    """Send."""
    return {"to": to, "n": n}


@task(name="mail.send", retries=5, timeout=60, result_ttl=10, priority=Priority.HIGH, retry_on=OSError)
def configured(to: str) -> str:
    return to


def sort(items: list[int]) -> None:
    items.sort()


async def test_a_task_is_still_the_function():
    """SPEC 2: still callable, `await send("a", n=1)`."""
    assert await plain("a", n=3) == {"to": "a", "n": 3}
    assert configured("b") == "b"


def test_without_parentheses_everything_is_the_default():
    """`@task` takes its name from the function; async functions run in the loop, others in threads."""
    assert (plain.name, plain.run_in, plain.timeout, plain.result_ttl, plain.priority) == (
        "plain",
        "loop",
        None,
        None,
        None,
    )
    assert plain.policy.retries == 3
    assert plain.policy.backoff == Backoff()
    assert configured.run_in == "thread"


def test_with_parentheses_everything_can_be_said():
    """Every option of the decorator."""
    assert (configured.name, configured.timeout, configured.result_ttl, configured.priority) == (
        "mail.send",
        60,
        10,
        50,
    )
    assert configured.policy.retries == 5
    assert configured.policy.retry_on == (OSError,)
    empty = task()(lambda_free)
    assert empty.name == "lambda_free"


def lambda_free() -> None: ...


def test_a_task_is_frozen_and_looks_like_its_function():
    """A value: nothing can be set on it, and tools find the function behind it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.name = "other"  # type: ignore[misc]
    assert plain.__wrapped__ is plain.function
    assert plain.__name__ == "plain"
    assert inspect.signature(plain) == inspect.signature(plain.function)
    assert repr(plain) == "<AsyncTask 'plain'>"
    assert repr(plain.call(1)) == "Call(task=<AsyncTask 'plain'>, args=(1,), kwargs={})"
    assert repr(batch_task(sort)) == "<SyncBatchTask 'sort'>"
    assert repr(TaskRef("far").options(delay=3)) == "<TaskRef 'far'>"
    with pytest.raises(ConfigurationError, match=r"^@task is for functions, not for the task 'plain'"):
        task(plain)  # type: ignore[call-overload]
    assert isinstance(plain, Task)


@pytest.mark.parametrize("name", ["", "a b", "a|b", "x" * 201, "a\n", "\ud800"])
def test_names_that_cannot_be_used_are_refused(name):
    """At the declaration, and for a task that is known by name only."""
    with pytest.raises(TaskNameError):
        task(name=name)(lambda_free)
    with pytest.raises(TaskNameError):
        TaskRef(name)


def test_a_function_without_a_name_needs_one():
    """A lambda or a partial has none that a producer could know."""
    with pytest.raises(TaskNameError, match="lambda"):
        task(lambda: None)
    partial = functools.partial(plain.function, n=2)
    with pytest.raises(TaskNameError, match="name="):
        task(partial)
    assert task(name="p")(partial).run_in == "loop"


def test_an_object_with_an_async_call_is_an_async_function():
    """It runs in the loop, and is not called in a thread that throws its coroutine away."""

    class Mailer:
        async def __call__(self) -> None: ...

    assert task(name="m")(Mailer()).run_in == "loop"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"timeout": "60"}, "timeout='60'"),
        ({"result_ttl": 0}, "result_ttl=0"),
        ({"result_ttl": float("inf")}, "result_ttl=inf"),
        ({"run_in": "thread"}, "write 'def' instead of 'async def', or leave run_in='thread' out"),
        ({"run_in": "process"}, "write 'def' instead of 'async def', or leave run_in='process' out"),
        ({"run_in": "fork"}, "run_in='fork', which is no place to run: leave it out"),
        ({"priority": "high"}, "priority='high'"),
        ({"tier": 5}, "task 'plain': tier"),
        ({"tier": "a b"}, "task 'plain': tier"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_the_declaration(settings, says):
    """The error names the value."""
    with pytest.raises(ConfigurationError, match=says):
        task(**settings)(plain.function)


def test_what_is_no_function_is_refused():
    """Classes, other tasks, generators and values."""
    for wrong in (5, Options, plain):
        with pytest.raises(ConfigurationError, match="functions"):
            task(wrong)  # type: ignore[call-overload]

    def generator():
        yield 1

    async def agenerator():
        yield 1

    for wrong in (generator, agenerator):
        with pytest.raises(ConfigurationError, match="generator"):
            task(wrong)
    with pytest.raises(ConfigurationError, match="write 'async def', or run_in='thread' or 'process'"):
        task(run_in="loop")(lambda_free)
    with pytest.raises(ConfigurationError, match=r"run_in='fork', .* give 'thread' or 'process'"):
        task(run_in="fork")(lambda_free)


def test_a_schedule_without_the_arguments_of_its_task_is_refused_where_it_is_declared():
    """The error names the schedule, the parameter, and where its arguments go."""

    async def report(kind: str, /, day: int = 1) -> None: ...

    for cron, says in (
        ("@daily", "no arguments: .*kind"),
        (Cron("@daily"), "no arguments: .*kind"),
        (Cron("@daily", args=("a", 2, 3)), r"\('a', 2, 3\).*too many"),
        (Cron("@daily", args=("a",), kwargs={"night": 1}), "night"),
    ):
        with pytest.raises(ConfigurationError, match=f"task 'report' has cron='@daily'.*{says}") as caught:
            task(cron=cron)(report)
        assert "write Cron('@daily', args=(...)), or kwargs={...}" in str(caught.value)
    assert len(task(cron=[Cron("@daily", args=("a",)), Cron("@hourly", args=("b", 2))])(report).cron) == 2


def test_a_call_is_a_task_and_its_arguments():
    """For `enqueue_many`."""
    call = plain.call("a", n=2)
    assert (call.task, call.args, call.kwargs) == (plain, ("a",), {"n": 2})
    by_name = TaskRef("x").options(priority=1).call(1, b=2)
    assert (by_name.task.send_options.priority, by_name.args, by_name.kwargs) == (1, (1,), {"b": 2})


async def test_the_coroutine_of_a_task_is_awaited_as_any_other():
    """In a task group of the user's own."""
    async with anyio.create_task_group() as group:
        group.start_soon(plain, "x")
