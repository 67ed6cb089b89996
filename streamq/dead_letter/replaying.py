"""What a replay sends, and which dead letters can be replayed. Sends nothing itself.

A dead letter whose message a worker had accepted becomes a new task. One whose message was refused for its signature
has the whole message as `raw.<field>`. Nothing in it was believed: it is checked as a worker checks it, with the keys
that are known by now. Then it goes on as the task that it is, with its id, so a workflow goes on with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamq.client import Command
from streamq.dead_letter.entry import DeadLetterEntry, replayed_options
from streamq.dead_letter.selection import dedup_ttl, is_full_entry_id
from streamq.diagnostics.safe_log import DEBUG, WARNING, SafeLog
from streamq.errors import ConfigurationError, DedupKeyHeldError, SignatureError, StreamqError, UndecodableError
from streamq.queue.sending import new_task_id
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.outcome import Reason
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field, Message, as_text
from streamq.wire.side_effects import upstream_mark
from streamq.wire.workflow_record import StepPlace
from streamq.wire.workflow_steps import decode, wanted_results

log = SafeLog("streamq")

REPLAYED_FROM = "replayed_from"  # the header with the task id of the dead task
_RAW = b"raw."
_MOST_NAMED = 10  # dead letters that are passed over for one cause, in the log
_REFUSED = f"{SignatureError.__module__}.{SignatureError.__qualname__}"


@dataclass(frozen=True, slots=True)
class Replay:
    """One dead letter that is replayed as the task `task_id`, with these fields, which have no signature yet."""

    letter: DeadLetterEntry
    tier: int
    task_id: str
    fields: list[Field]

    def command(self, store: Store) -> Command:
        """Return the atomic step."""
        keys, arguments = self._parts(store)
        return step("replay")(keys, *arguments)

    def command_in(self, store: Store, operation: str, *, come_from: str, examined: int, kept: int) -> Command:
        """Return the atomic step of an operation that has come to the entry id `come_from`, and goes on to this letter.

        `operation` is its key, kept for `kept` ms from now on; `examined` letters were looked at on the way.
        """
        keys, arguments = self._parts(store)
        held = f"another task holds the deduplication key of task {self.letter.task_id!r}"
        return step("operation_replay")([operation, *keys], come_from, examined, kept, held, *arguments)

    def _parts(self, store: Store) -> tuple[list[str], list[Field | float]]:
        letter, fields, ttl = self.letter, self.fields, dedup_ttl(self.letter)
        stream = store.keys.tiers[self.tier].stream
        keys = [store.keys.dead, stream]
        if ttl:
            keys += (store.keys.dedup(letter.options["dedup"]), store.keys.latest(letter.options["dedup"]))
        if (place := StepPlace.parse(letter.options.get("workflow", "").encode())) is not None:
            keys.append(store.keys.workflow(place.workflow_id))
        noted_as = "" if place is None else place.field(letter.options.get("group", store.keys.group))
        if store.signer is not None:
            fields = store.signer.sign(stream, fields)
        later = [store.keys.result(task_id) for task_id in self._later_steps()]
        return keys, [
            letter.entry_id, self.task_id, letter.task_id, ttl, upstream_mark(letter.task_id),
            noted_as, len(later), *later, *fields,
        ]  # fmt: skip

    def _later_steps(self) -> list[str]:
        """Return the ids of the later steps of its workflow whose results are kept: now they say that this one failed.

        The dead task keeps its own result: it did fail, and its replay has another id.
        """
        if "then" not in self.letter.options:
            return []
        try:
            stages = decode(self.letter.options["then"].encode())
        except UndecodableError:  # the worker that runs it says so
            return []
        return [task_id for task_id, _ in wanted_results(stages)]

    def held(self, holder: bytes) -> DedupKeyHeldError:
        """Return the error of a replay that was refused because this task holds the deduplication key."""
        key = self.letter.options["dedup"]
        return DedupKeyHeldError(self.letter.task_id, key, holder.decode(errors="backslashreplace"))


class PassedOver:
    """The dead letters that a replay by filter has passed over. Of each cause the first few are logged by name."""

    def __init__(self) -> None:
        self._counts: dict[type[StreamqError], int] = {}

    def __repr__(self) -> str:
        return f"<PassedOver {sum(self._counts.values())}>"

    def note(self, error: StreamqError) -> None:
        """Note that a dead letter stays, and why."""
        count = self._counts[type(error)] = self._counts.get(type(error), 0) + 1
        log.at(WARNING if count <= _MOST_NAMED else DEBUG, "not replayed: %s", error, event="not_replayed")

    def log_total(self, replayed: int) -> None:
        """Log how many there were, if not each was named."""
        if any(count > _MOST_NAMED for count in self._counts.values()):
            causes = ", ".join(f"{count} ({cause.__name__})" for cause, count in self._counts.items())
            log.warning("dead letters replayed: %d; passed over: %s", replayed, causes, event="replayed")


def tier_index(store: Store, letter: DeadLetterEntry) -> int | None:
    """Return the index of the tier in which a letter died: by the tier's name, or else by its stream; None for none."""
    for index, tier in enumerate(store.tiers):
        if tier.name == letter.tier:
            return index
    stream = letter.origin.partition(" ")[0]
    for index, keys in enumerate(store.keys.tiers):
        if keys.stream == stream:
            return index
    return None


def stream_of(store: Store, letter: DeadLetterEntry) -> str | None:
    """Return the stream to which a letter is replayed, None if the broker does not have its tier."""
    tier = tier_index(store, letter)
    return None if tier is None else store.keys.tiers[tier].stream


def checked_replay(store: Store, letter: DeadLetterEntry, retries: int | None) -> Replay:
    """Return the replay of a dead letter. `retries` overrides the retry budget.

    Raises UndecodableError if no worker could read the message, SignatureError if it is not signed as it must be,
    ConfigurationError if the broker does not have its tier.
    """
    flat = None if letter.replayable else _refused_message(letter)
    if not letter.replayable and flat is None:
        raise UndecodableError(f"{_named(letter)} is not a message and cannot be replayed; {_why(letter)}")
    tiers, tier = store.tiers, tier_index(store, letter)
    if tier is None:
        names = ", ".join(one.name for one in tiers)
        raise ConfigurationError(
            f"task {letter.task_id!r} died in the tier {letter.tier!r}; this broker has {names}: "
            "give it the tiers of its queue (--tiers, RedisBroker(tiers=...))"
        )
    if flat is not None:
        refused = Delivery(tier, tiers[tier].name, _origin_id(letter), flat)
        return _replay_of_refused(store, letter, tier, refused, retries)
    letter.check_signature(store.signer)
    task_id = new_task_id()
    fields = _fields_of(letter, task_id, retries)
    try:
        Delivery(tier, tiers[tier].name, b"0-1", [part.encode() for part in as_text(fields)]).check()
    except UndecodableError as error:
        raise UndecodableError(f"{_named(letter)} cannot be replayed: {error}; enqueue a corrected task") from None
    return Replay(letter, tier, task_id, fields)


def _replay_of_refused(
    store: Store, letter: DeadLetterEntry, tier: int, delivery: Delivery, retries: int | None
) -> Replay:
    if store.signer is None:
        raise SignatureError(
            f"{_named(letter)} was refused for its signature and this broker has no keys: give --signing-keys FILE "
            "(signing=SigningKeys(...))"
        )
    try:
        store.check_signature(delivery)
        delivery.check()
    except SignatureError as error:
        raise SignatureError(f"{_named(letter)} cannot be replayed: {error}") from None
    except UndecodableError as error:
        raise UndecodableError(f"{_named(letter)} cannot be replayed: {error}; enqueue a corrected task") from None
    options = replayed_options(delivery.fields)
    group = options.get("group") or letter.options.get("group")
    options |= {"group": group} if group else {}
    chosen = replace(letter, options=options)
    return Replay(chosen, tier, delivery.task_id, _fields_of_refused(chosen, delivery, store.keys.group, retries))


def _refused_message(letter: DeadLetterEntry) -> list[bytes] | None:
    """Return the flat fields of a message that was refused for its signature, None if this is none, or is not whole."""
    pairs = list(zip(letter.flat[::2], letter.flat[1::2], strict=False))
    if (letter.reason, letter.error_type) != (Reason.UNDECODABLE, _REFUSED) or any(name == b"cut" for name, _ in pairs):
        return None
    if not is_full_entry_id(_origin_id(letter).decode()):
        return None
    flat = [part for name, value in pairs if name.startswith(_RAW) for part in (name[len(_RAW) :], value)]
    return flat or None


def _origin_id(letter: DeadLetterEntry) -> bytes:
    return letter.origin.rpartition(" ")[2].encode()


def _fields_of(letter: DeadLetterEntry, task_id: str, retries: int | None) -> list[Field]:
    fields: list[Field] = Message(
        task=letter.task_name,
        task_id=task_id,
        args=letter.args,
        kwargs=letter.kwargs,
        headers={**letter.headers, REPLAYED_FROM: letter.task_id},
    ).fields(limit=1 << 62)  # it was accepted once: the new header must not exceed the size limit
    options = dict(letter.options) if retries is None else {**letter.options, "retries": str(retries)}
    if "dedup_ttl" in options and (ttl := dedup_ttl(letter)):  # by hand it may be anything
        options["dedup_ttl"] = str(ttl)
    for pair in options.items():
        fields += pair
    return fields


def _fields_of_refused(letter: DeadLetterEntry, refused: Delivery, group: str, retries: int | None) -> list[Field]:
    """Return the fields as they were, for the group of the worker that refused them. They have no signature."""
    changes = {} if retries is None else {"retries": str(retries)}
    return [*refused.resend_fields(letter.options.get("group", group), **changes)]


def _named(letter: DeadLetterEntry) -> str:
    return f"dead letter {letter.entry_id} (task {letter.task_id!r})"


def _why(letter: DeadLetterEntry) -> str:
    names = f"unreadable: {', '.join(letter.raw) or 'it names no task'}"
    why = letter.error if letter.reason == Reason.UNDECODABLE and letter.error else names
    if letter.error_type == _REFUSED:
        return f"it was not kept whole; it was refused for this: {why}; enqueue the task again"
    return f"{why}; enqueue a corrected task"
