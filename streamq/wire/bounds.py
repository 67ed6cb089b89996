"""Bounds: the lowest and the highest value of every number, time and size that enters, in one table.

A value is checked where it enters: an option by its constructor, or by the enqueue (ConfigurationError, with the bound
named), a field when its message is decoded (UndecodableError), what a handler asks for when its run is decided (the run
has failed then). So nothing behind these places has to think of nan, of infinity, or of a time beyond what Redis, Lua
and Python can add up. `docs/bounds.md` has the same table.

A time that an option asks for in seconds may be a `timedelta`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, UndecodableError

LONGEST = 1e10  # seconds, 317 years
LAST_MOMENT = 253_402_300_799.0  # Unix seconds: the last one of the year 9999
LONGEST_LEASE = 31 * 86_400.0  # seconds: a longer one is somebody else's, and counts as none (`_consumers.lua`)
_MANY = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound of one value. `unit` is "s", "Unix s", "bytes", ... ; a `whole` value is an integer."""

    name: str
    unit: str
    lowest: float
    highest: float
    why: str
    whole: bool = False

    def __contains__(self, value: float) -> bool:
        return self.lowest <= value <= self.highest

    @property
    def range(self) -> str:
        """The bound in words: `0 to 10,000,000,000 s`."""
        return f"{_plain(self.lowest)} to {_plain(self.highest)}{' ' * bool(self.unit)}{self.unit}"

    def check(self, value: Any, what: str = "") -> Any:
        """Return a value of an option named `what`, a timedelta as seconds.

        Raises ConfigurationError unless it is a number within the bound.
        """
        number = value.total_seconds() if self.unit == "s" and isinstance(value, timedelta) else value
        kinds = int if self.whole else int | float
        if not isinstance(number, kinds) or isinstance(number, bool) or not self.lowest <= number <= self.highest:
            kind = "an integer" if self.whole else "a number"
            unit = f" ({self.unit})" if self.unit else ""
            raise ConfigurationError(
                f"{what or self.name.rpartition('.')[2]}={repr_of(value, 200)} cannot be used: give {kind} of at least "
                f"{_plain(self.lowest)} and at most {_plain(self.highest)}{unit}"
            )
        if type(number) in (int, float):
            return number
        return int(number) if isinstance(number, int) else float(number)  # of a subclass, which orjson may not know


def _plain(value: float) -> str:
    return f"{value:,.15g}"


def _seconds(name: str, why: str, lowest: float = 0.0, highest: float = LONGEST) -> Bound:
    return Bound(name, "s", lowest, highest, why)


def _count(name: str, why: str, lowest: int = 1, highest: int = _MANY, unit: str = "") -> Bound:
    return Bound(name, unit, lowest, highest, why, whole=True)


def _moment(name: str, why: str) -> Bound:
    return Bound(name, "Unix s", 0.0, LAST_MOMENT, why)


# Options of one message, of a task, and what a handler asks for.
PRIORITY = _count("priority", "fits every client's integer", -(1 << 31), 1 << 31)
RETRIES = _count("retries", "one a second for 31 years", 0)
TIMEOUT = _seconds("timeout", "0 is none, in a message or an enqueue")
RESULT_TTL = _seconds("result_ttl", "0 is not at all, in a message or an enqueue")
TASK_TIMEOUT = _seconds("task.timeout", "None is none", 0.001)
TASK_RESULT_TTL = _seconds("task.result_ttl", "None is not at all", 0.001)
DELAY = _seconds("delay", "the sum with the time of now fits the calendar")
AT = _moment("at", "the calendar ends")
EXPIRES = _seconds("expires", "from now; a datetime is bounded by the calendar")
DEDUP_TTL = _seconds("dedup_ttl", "as a delay")
DEDUP_WINDOW = _seconds("dedup_window", "as a delay")
DEDUP_MAX_DELAY = _seconds("dedup_max_delay", "as a delay")
AFTER = _seconds("RetryLater.after", "a time that is over means now", -LONGEST)
BACKOFF = _seconds("backoff", "each delay of a backoff; its sum with the time of now fits the calendar")
MAX_BACKOFF = _seconds("max_backoff", "as a delay")
BACKOFF_FACTOR = Bound("Backoff.factor", "", 1.0, 1e6, "more is the cap at the second attempt")
WAIT_TIMEOUT = _seconds("result.timeout", "None waits for ever; a time that is over means now", -LONGEST)
KEEP = _seconds("group.keep", "the results of a workflow group must not be gone at once", 1.0)
CRON = _count(
    "a cron expression", "it is parsed without a pause; all numbers of all fields take 528", 1, 1_000, "characters"
)

# Fields of a message that no option sets.
ATTEMPT = _count("attempt", "more than all retries", 0, 1 << 32)
STARTS = _count("starts", "more than all attempts", 0, 1 << 33)
UNIX_FIELD = _moment("expires, enqueued_at, unknown_since", "the calendar ends; the fields are in ms")
FIELDS_OF_ENTRY = _count("fields of an entry", "Lua can pass on a few thousand arguments", 1, 1_000)
MEMBERS = _count("then: steps", "a workflow is decoded as a whole", 1, 10_000)
DEPTH = _count("then: groups in groups", "each level is a level of recursion", 0, 32)
WORKFLOW_BYTES = _count(
    "then: bytes", "what its messages may take at the same time, and what a group may pass on", 1, 32 << 20, "bytes"
)
RESULT = _count("a result", "a server closes the connection on a text that is too large for it", 0, 32 << 20, "bytes")

# Worker and broker.
CONCURRENCY = _count("concurrency", "each is a loop of its own", 1, 100_000)
VISIBILITY_TIMEOUT = _seconds("visibility_timeout", "a lease is renewed every third", 0.1, LONGEST_LEASE)
GRACE_PERIOD = _seconds("grace_period", "0 releases at once")
MAX_CRASHES = _count("max_crashes", "one worker may die by accident", 2, 1_000)
UNKNOWN_WAIT = _seconds("unknown_wait", "0 dead-letters at once")
MAX_PREFETCH = _count("max_prefetch", "0 reads for free slots alone", 0, 1_000_000)
PREFETCH_BYTES = _count("prefetch_bytes", "one message must fit", 1 << 10, 1 << 40, "bytes")
HANDLER_PROCESSES = _count("processes", "each is a process of its own", 1, 1_024)
MAX_TASKS_PER_PROCESS = _count("max_tasks_per_process", "a process runs one, at least", 1)
MAX_RSS = _count("max_rss", "Python itself takes some 20 MiB; also --max-rss", 1 << 20, 1 << 40, "bytes")
WEIGHT = _count("Tier.weight", "the least common multiple of all weights stays small", 1, 10_000)
MAX_PAYLOAD = _count("max_payload", "Redis takes 512 MiB in one text", 1, 512 << 20, "bytes")
CONNECT_TIMEOUT = _seconds(
    "connect_timeout", "a connection takes some time; also socket_connect_timeout of the URL", 0.001, 1e8
)
REPLY_TIMEOUT = _seconds("reply_timeout", "a reply takes some time; also socket_timeout of the URL", 0.001, 1e8)
DEAD_LETTER_BYTES = _count("max_bytes", "0 is any; estimated by the server", 0, 1 << 40, "bytes")
DEAD_LETTERS = _count("max_size", "dead letters are read page by page", 1)
DEAD_LETTER_AGE = _seconds("max_age", "0 is any age")
BATCH_SIZE = _count("batch_task.size", "each message takes a slot", 1, 100_000)
BATCH_WAIT = _seconds("batch_task.wait", "0 takes what is there")

# Middleware, effects, progress.
LIMIT_RUNNING = _count("ConcurrencyLimit.max_running", "at least one runs")
LIMIT_LEASE = _seconds("ConcurrencyLimit.lease", "a lease is renewed every third", 0.3, LONGEST_LEASE)
RATE = Bound("RateLimitMiddleware.max_per_second", "/s", 1e-9, 1e9, "one in 31 years; one each nanosecond")
BURST = _count("RateLimitMiddleware.burst", "at least one starts")
FAILURE_THRESHOLD = _count("CircuitBreaker.failure_threshold", "at least one fails")
FAILURE_RATE = Bound("CircuitBreaker.failure_rate", "", 1e-9, 1.0, "a share of the calls")
RESET_TIMEOUT = _seconds("CircuitBreaker.reset_timeout", "an open circuit waits", 0.001)
CIRCUIT_WINDOW = _seconds("CircuitBreaker.window", "a share of the calls of some time", 0.001)
RELEASE_RATE = Bound("CircuitBreaker.release_rate", "/s", 1e-9, 1e9, "as a rate limit")
HALF_OPEN_MAX = _count("CircuitBreaker.half_open_max", "at least one tries")
MIN_CALLS = _count("CircuitBreaker.min_calls", "a share of at least one call")
EFFECT_TTL = _seconds("once.ttl", "also that of Idempotency", 0.1)
EFFECT_LEASE = _seconds("once.lease", "also that of Idempotency", 0.1)
EFFECT_WAIT = _seconds("once.wait", "also that of Idempotency")
SEEN_TTL = _seconds("is_duplicate.ttl", "Redis counts milliseconds", 0.001)
OLDER_THAN = _seconds("older_than", "0 is every one; of an inbox, and of dead letters")
DONE = Bound("report_progress.done", "", 0.0, 1e15, "a double counts whole numbers so far")
TOTAL = Bound("report_progress.total", "", 0.0, 1e15, "as done")
SCRAPE_INTERVAL = _seconds("QueueCollector.interval", "a snapshot is a round trip", 0.1)
PORT = Bound("Endpoint.port", "", 0, 65_535, "0 is one that the system chooses", whole=True)
STATSD_PORT = Bound("StatsdExporter.port", "", 1, 65_535, "a port", whole=True)
STATSD_INTERVAL = _seconds("StatsdExporter.interval", "each is some packets", 0.1)
SCAN = _count("examine.scan", "entries that doctor reads; 0 is none", 0)

# Reading.
PEEKED = _count("peek.count", "0 is none; also -n of streamq dlq ls, from 1", 0)
REPLAYED = _count("replay.limit", "None replays all that match")
SEARCHED = _count("search.count", "what is found is held in memory; also -n of streamq dlq search", 1, 1_000_000)
EXAMINED = _count("search.examine", "also of stats: the letters that one call looks at")
OPERATED = _count("start.limit", "None is every letter that matches; also --limit")
OPERATION_RATE = Bound("start.rate", "/s", 1e-3, 1e6, "letters a second; None is as fast as it goes; also --rate")
SCHEDULED = _count("scheduled.limit", "None yields all", 0)
MONITOR_WINDOW = _seconds(
    "QueueMonitor.window", "counters are in buckets of 10 s, and kept for 15 minutes", 10.0, 900.0
)
MONITOR_INTERVAL = _seconds("QueueMonitor.watch", "a snapshot is two round trips", 0.1)
WANTED_WITHIN = _seconds("wanted_workers.within", "a rate needs some time", 0.001)
PROCESSES = _count("--processes", "each is a process of its own", 1, 1_024)
MAX_TASKS = _count("--max-tasks", "a process that runs nothing is of no use")

TABLE: tuple[Bound, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Bound))

# --- fields of a message ---------------------------------------------------------------------------

_WHOLE = re.compile(rb"-?[0-9]{1,19}").fullmatch
_DECIMAL = re.compile(rb"[0-9]{1,20}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?").fullmatch


def whole_number(name: str, raw: bytes, bound: Bound, *, per: int = 1) -> int:
    """Return a field that is a whole number, in decimal digits alone: no sign `+`, no blank, no `_`.

    `per` is how many of its unit make one of the bound's (1,000 for a field in ms). Raises UndecodableError.
    """
    if _WHOLE(raw) is not None:
        value = int(raw)
        if bound.lowest * per <= value <= bound.highest * per:
            return value
    limits = f"{_plain(bound.lowest * per)} to {_plain(bound.highest * per)}"
    raise UndecodableError(f"field {name!r} is {shown(raw)}, which is no whole number from {limits}")


def seconds_field(name: str, raw: bytes, bound: Bound) -> float:
    """Return a field that is a number of seconds, in decimal digits: `5`, `0.25`, `1e-05`. Raises UndecodableError."""
    if _DECIMAL(raw) is not None:
        value = float(raw)
        if bound.lowest <= value <= bound.highest:
            return value
    raise UndecodableError(f"field {name!r} is {shown(raw)}, which is no number of seconds from {bound.range}")


def shown(raw: bytes) -> str:
    """Return a value as short text, for an error."""
    text = raw[:80].decode(errors="backslashreplace")
    return f"{text!r}{'...' * (len(raw) > 80)}"
