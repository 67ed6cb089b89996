"""The public names: few paths, each with a chosen list. All else is private by its place."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from tests.docs.pages import ROOT, programs

PUBLIC = {
    "streamq": """
        Ack Backoff Call Cancellation Cron DeadLetter DeadLetterBound Delays Delivery Event Exhausted Failure
        Fixed Handle Health Inbox Linear Listener Options Outcome Postpone Priority Progress Reason Reclaimed
        Recovered RedisBroker Reject Release Retry RetryLater RetryOutcome Scheduled Settled SigningKeys Skip
        Started Status StepState StepStatus StreamqError Superseded SyncBroker SyncHandle SyncWorkflow
        SyncWorkflowHandle Task TaskRef Tier Trouble Worker Workflow WorkflowHandle WorkflowState WorkflowStatus
        as_completed batch_task cancel_requested current_batch current_broker current_cancellation
        current_delivery gather group once report_progress report_progress_sync step task
    """,
    "streamq.errors": """
        ArgumentsError BatchResultError BrokerError BrokerUnavailableError CircuitOpenError
        ConfigurationError DeadLetterNotFoundError DedupKeyHeldError EffectInProgressError EffectLostError
        EffectNotBegunError EncodingError LeftOpenError LifespanEndedError MessageError MissingExtraError
        NotDurableError NotHeldError NotOpenError OperationNotFoundError OperationTakenError OutcomeUnknownError
        PayloadTooLargeError ProcessDiedError
        ProcessHandlerError Reject ResultNotKeptError ResultTimeoutError ResultTypeError Retry RetryLater
        SignatureError StreamqError SyncCallError TaskFailedError TaskNameError TaskTimeoutError UndecodableError
        UnreadableExceptionError UnrecordableError WrongLoopError
    """,
    "streamq.middleware": """
        CallNext CircuitBreaker CircuitView ConcurrencyLimit Context Idempotency Middleware MiddlewareChain
        RateLimitMiddleware RemoteFailureError Resident SendMiddleware SendNext
    """,
    "streamq.dead_letter": """
        DeadLetterEntry DeadLetterFilter DeadLetterGroup DeadLetterOperation DeadLetterQueue DeadLetterStats Imported
        LetterOutcome OperationProgress Redaction SearchResult
    """,
    "streamq.monitoring": """
        CircuitMetrics ConsumerMetrics Figures QueueMetrics QueueMonitor TaskMetrics TierMetrics
    """,
    "streamq.exporters": "Endpoint QueueCollector StatsdExporter TracingMiddleware inject_headers",
    "streamq.testing": """
        Checker EndedTask FakeDelivery FinalState Limits LogError Question Record Recorder Report Row RunTasks
        SyncRunTasks VirtualTime check fake_delivery final_state own_task read scenarios summary table
    """,
    "streamq.logs": "JsonFormatter TaskFields TextFormatter add_task_fields task_fields",
    "streamq.embedded": "EmbeddedServer MemoryServer open_embedded",
    "streamq.doctor": "Finding Report SEVERITIES Severity examine",
}


def imported(code: str, module: str = "streamq") -> set[tuple[str, str]]:
    """Return what a program imports from a package: (path, name)."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == module:
            found |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == module}
    return found


@pytest.mark.parametrize("path", PUBLIC)
def test_the_public_names_are_these(path: str) -> None:
    """No more and no less; each is there, and has a docstring where it is a class or a function."""
    module = importlib.import_module(path)
    assert sorted(module.__all__) == sorted(PUBLIC[path].split())
    for name in module.__all__:
        one = getattr(module, name)
        assert name in dir(module)
        assert one.__doc__ or not (inspect.isclass(one) or inspect.isfunction(one)), name


def _examples() -> list[tuple[str, str]]:
    files = [(path.name, path.read_text()) for path in sorted((ROOT / "examples").glob("*.py"))]
    return files + [(program.place, program.code) for program in programs()]


@pytest.mark.parametrize(("place", "code"), [pytest.param(*one, id=one[0]) for one in _examples()])
def test_documentation_and_examples_import_public_names_alone(place: str, code: str) -> None:
    """What is private by its place is in no program that users copy."""
    for path, name in imported(code):
        assert path in PUBLIC, f"{place} imports from {path}"
        assert name in {"", "__version__", *PUBLIC[path].split()}, f"{place} imports {name} from {path}"
