"""The outcome of a run: of one that raised, or of one that returned, with its result for waiters and the next step.

Encoding a result may run code of the user, which may raise anything: the work is done, so the task is acknowledged.
"""

from __future__ import annotations

import random
from typing import Any

from streamq.consumer.handler import Handler, timeout_error
from streamq.consumer.outcome_log import log_outcome
from streamq.consumer.process_outcome import LostResult
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import str_of, type_name
from streamq.errors import MessageError, UndecodableError
from streamq.queue.result_payload import NOT_KEPT
from streamq.tasks.outcome import Ack, DeadLetter, Outcome, Reason, decide, failure_of, never_called
from streamq.wire.bounds import RESULT
from streamq.wire.delivery import Delivery
from streamq.wire.message import dumps
from streamq.wire.side_effects import THEN
from streamq.wire.workflow_steps import encoded_result

log = SafeLog("streamq")

DONE = Ack()
_DONE_WITH_NONE = Ack(b'{"ok":null}')


def kept_for(delivery: Delivery, handler: Handler | None) -> float | None:
    """Return how long (s) the result is kept, None for not at all. An entry that is no message keeps none."""
    keep = handler.result_ttl if handler is not None else None
    if delivery.only_basic_fields:
        return keep
    try:
        wanted = delivery.result_ttl
    except UndecodableError:
        return None
    return keep if wanted is None else wanted or None


def after_failure(handler: Handler, delivery: Delivery, error: BaseException, uniform: random.Random) -> Outcome:
    """Return the outcome of a run that raised."""
    try:
        outcome = decide(
            handler.task.policy, attempt=delivery.attempt, retries=delivery.retries, error=error, random=uniform,
            run=delivery,
        )  # fmt: skip
    except BaseException as broken:
        log.exception(
            "task %s %s cannot be decided",
            delivery.task,
            delivery.task_id,
            event="internal_error",
            of=delivery,
            error=broken,
        )
        return DeadLetter(Reason.INTERNAL_ERROR, failure_of(broken))
    if isinstance(outcome, DeadLetter) and never_called(error, handler.task.policy):
        delivery.began = False
    log_outcome(delivery, error, outcome, handler.failure_level)
    return outcome


def after_timeout(
    handler: Handler, delivery: Delivery, cancelled: BaseException, rest: BaseException | None, uniform: random.Random
) -> Outcome:  # fmt: skip
    """Return the outcome of a run that its runner ended: `rest` is what it raised beside the cancellation."""
    limit = handler.runner_timeout or 0.0
    return after_failure(handler, delivery, rest or timeout_error(handler.task.name, limit, cancelled), uniform)


def success(handler: Handler, delivery: Delivery, result: Any, limit: int) -> Outcome:
    """Return the outcome of a run that returned: dead if the next step of its workflow cannot take the result."""
    if delivery.only_basic_fields:
        if handler.result_ttl is None:
            return DONE
        return _DONE_WITH_NONE if result is None and handler.none_fits else Ack(_encoded(handler, delivery, result))
    if THEN in delivery.fields:
        try:
            stages = delivery.then or []
            payload = encoded_result(stages, handler.task.name, result, encode=handler.encode, limit=limit)
        except MessageError as error:
            log.error("task %s %s: %s", delivery.task, delivery.task_id, error, event="result_lost", of=delivery)  # noqa: TRY400
            return DeadLetter(Reason.REJECTED, failure_of(error))
        if payload:
            return Ack(b'{"ok":' + payload + b"}")
    return Ack(_encoded(handler, delivery, result)) if kept_for(delivery, handler) else DONE


def _encoded(handler: Handler, delivery: Delivery, result: Any) -> bytes:
    """Return a result as waiters get it; if it is not JSON, they get an error."""
    try:
        encoded = b'{"ok":%b}' % handler.encode(result)
    except BaseException as error:  # noqa: BLE001 - the encoder runs code of the user, which may raise anything
        why = result.why if issubclass(type(result), LostResult) else str_of(error) or type_name(error)
        return _not_kept(delivery, f"cannot be sent as JSON: {why}")
    if len(encoded) > RESULT.highest:  # a server closes the connection on what is too large for it
        return _not_kept(delivery, f"has {len(encoded):,} bytes, and at most {RESULT.highest:,} are kept")
    return encoded


def _not_kept(delivery: Delivery, why: str) -> bytes:
    log.error(
        "task %s %s: its result cannot be kept: it %s",
        delivery.task,
        delivery.task_id,
        why,
        event="result_lost",
        of=delivery,
    )
    failure = {
        "error_type": "EncodingError", "error": f"the task succeeded, its result {why}", "reason": NOT_KEPT,
        "traceback": "",
    }  # fmt: skip
    return dumps(failure)
