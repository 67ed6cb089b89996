"""The queue's commands and its Lua scripts against a plain model, under both backends, on every server.

`STREAMQ_EXAMPLES=5000 pytest tests/stateful` looks for longer.
"""

from __future__ import annotations

import os
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.servers import Kind, available
from tests.stateful.driver import Server
from tests.stateful.machine import QueueMachine

pytestmark = pytest.mark.slow

EXAMPLES: dict[Kind, int] = {"memory": 50, "valkey": 25, "redis": 25}  # for each backend
STEPS = 50


@pytest.mark.timeout(900)  # what fails is made small first, which takes Hypothesis up to five minutes
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_any_history_goes_as_documented(kind, backend, shared_server):
    """P1, P3, P4, P5, P10: after each step all answers, and all that lies in Redis, are those of the model."""
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    examples = int(os.environ.get("STREAMQ_EXAMPLES", EXAMPLES[kind]))
    with Server.opened(None if kind == "memory" else shared_server(kind), backend) as server:
        run_state_machine_as_test(
            partial(QueueMachine, server),
            settings=settings(
                max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None, print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
