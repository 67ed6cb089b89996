"""Signatures of messages: who has no key can send no task, change none, and move none to another stream.

A signature is an HMAC-SHA256 over the whole message, in its field `sig`: `<form>:<id of the key>:<64 hex digits>`. What
it covers is a list of texts, each with its length in front (netstrings: `5:hello,`), so no two lists look alike. The
first texts say what is signed, and for which namespace: a signature of one purpose is none of another. HMAC is in the
library of every language, and one call of the standard library here. Pure; knows no server.

Workers have the keys as well. They sign what they change (a retry) and what they send (the next step of a workflow).
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import orjson

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, SignatureError
from streamq.wire.bounds import shown
from streamq.wire.delivery import Delivery
from streamq.wire.message import Field
from streamq.wire.names import IS_PLAIN_ID

SIG = b"sig"  # the field
SHORTEST_KEY = 32  # bytes: as many as HMAC-SHA256 puts out (RFC 2104, section 3)
LONGEST_KEY = 1024  # bytes

_WHOLE = "v1"  # every field, and the stream
_LATEST = "v1-latest"  # every field but the id: the server chooses id and stream (debounce, keep_last)
_JOINED = "v1-joined"  # as v1; the first argument is a list of results, each signed by the worker it comes from
_FORMS = frozenset((_WHOLE, _LATEST, _JOINED))
_BASIC = frozenset((b"task", b"args", b"kwargs", b"id", b"priority", SIG))
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SIGNATURE = re.compile(rb"(v1(?:-latest|-joined)?):([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_SIGNED_RESULT = re.compile(rb'"(v1:[A-Za-z0-9._-]{1,64}:[0-9a-f]{64}) ')  # its beginning
_JSON = json.JSONDecoder(parse_int=str, parse_float=str)  # says where a value ends; orjson does not


class SigningKeys:
    """The keys that messages are signed with. All of them are accepted, `sign_with` signs.

    `keys` are bytes by key id: 32 to 1,024 random bytes each, as `secrets.token_bytes(32)` makes them. An id has 1 to
    64 letters, digits, '.', '_' or '-'. `sign_with` may be left out if there is one key. With `accept_unsigned`
    messages without a signature run as well: for the time in which signing is introduced.

    Raises ConfigurationError for keys that cannot be used. Neither the error nor `repr` shows a key.
    """

    __slots__ = ("_keys", "accept_unsigned", "sign_with")

    def __init__(
        self, keys: Mapping[str, bytes], *, sign_with: str | None = None, accept_unsigned: bool = False
    ) -> None:
        if not isinstance(keys, Mapping):
            raise ConfigurationError(f"signing keys of type {type(keys).__name__} cannot be used: give bytes by key id")
        for key_id, key in keys.items():
            _check_key(key_id, key)
        if not keys:
            raise ConfigurationError("there are no signing keys: give at least one, as bytes by key id")
        if sign_with is None and len(keys) == 1:
            (sign_with,) = keys
        if sign_with is None or sign_with not in keys:
            raise ConfigurationError(
                f"sign_with={repr_of(sign_with)} (--sign-with) is no key: give the id of the key that signs, of "
                f"{', '.join(map(repr, keys))}"
            )
        self._keys = dict(keys)
        self.sign_with = sign_with
        self.accept_unsigned = bool(accept_unsigned)

    def __repr__(self) -> str:
        accepted = ", ".join(self._keys)
        return f"<SigningKeys {accepted}, signs with {self.sign_with}{', accepts unsigned' * self.accept_unsigned}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SigningKeys):
            return NotImplemented
        return (self._keys, self.sign_with, self.accept_unsigned) == (
            other._keys, other.sign_with, other.accept_unsigned,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> str:
        raise ConfigurationError("signing keys are not copied or pickled: make them where they are needed")

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys that are accepted."""
        return tuple(self._keys)

    @classmethod
    def parse(cls, text: str, *, sign_with: str | None = None, accept_unsigned: bool = False) -> SigningKeys:
        """Return the keys that a text lists: `<id>=<hex digits>`, one a line or separated by commas.

        Blank lines and lines that begin with `#` are left out. Raises ConfigurationError, which shows no key.
        """
        keys: dict[str, bytes] = {}
        lines = [part for line in text.splitlines() if not line.lstrip().startswith("#") for part in line.split(",")]
        for number, line in enumerate(filter(None, map(str.strip, lines)), 1):
            key_id, equals, digits = (part.strip() for part in line.partition("="))
            if not equals or not _KEY_ID.fullmatch(key_id):
                raise ConfigurationError(f"signing key number {number} cannot be read: write <id>=<hex digits>")
            if key_id in keys:
                raise ConfigurationError(f"the signing key {repr_of(key_id)} is given twice: give each id once")
            try:
                keys[key_id] = bytes.fromhex(digits)
            except ValueError:
                raise ConfigurationError(f"the signing key {repr_of(key_id)} is not written in hex digits") from None
        if not keys:
            raise ConfigurationError("it has no keys: write <id>=<hex digits>, one a line")
        return cls(keys, sign_with=sign_with, accept_unsigned=accept_unsigned)

    def digest(self, key_id: str, content: bytes) -> bytes | None:
        """Return the HMAC of a content with this key, None if there is no such key."""
        key = self._keys.get(key_id)
        return None if key is None else hmac.digest(key, content, "sha256")


def _check_key(key_id: object, key: object) -> None:
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise ConfigurationError(
            f"{repr_of(key_id)} cannot be the id of a signing key: give 1 to 64 letters, digits, '.', '_' or '-'"
        )
    if not isinstance(key, bytes):
        raise ConfigurationError(
            f"the signing key {repr_of(key_id)} is of type {type(key).__name__}: "
            "give bytes, for example bytes.fromhex(...)"
        )
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise ConfigurationError(
            f"the signing key {repr_of(key_id)} has {len(key)} bytes: give {SHORTEST_KEY} to {LONGEST_KEY} "
            "random ones, for example secrets.token_bytes(32)"
        )


class Signer:
    """Signs and checks messages, dead letters and schedules of one namespace and consumer group."""

    __slots__ = ("_group", "_keys", "_namespace", "_prefix")

    def __init__(self, keys: SigningKeys, *, namespace: str, group: str) -> None:
        self._keys = keys
        self._namespace = namespace
        self._group = group
        self._prefix: dict[str, bytes] = {}  # by stream: what stands before the fields of its messages

    def __repr__(self) -> str:
        return f"<Signer of {self._namespace} with {self._keys!r}>"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys that are accepted."""
        return self._keys.ids

    @property
    def accepts_unsigned(self) -> bool:
        """Is accepted what has no signature?"""
        return self._keys.accept_unsigned

    # --- signing ---------------------------------------------------------------------------------

    def sign(self, stream: str, fields: Iterable[Field]) -> list[Field]:
        """Return the flat fields of a message for this stream, signed. A signature that they had is left out."""
        flat = [part.encode() if isinstance(part, str) else part for part in fields]
        if SIG in flat[::2]:
            flat = _without(flat, SIG)
        return [*flat, SIG, self._signature(_WHOLE, self._message(stream) + _encode(flat))]

    def sign_latest(self, fields: Sequence[Field]) -> list[str]:
        """Return the flat fields of a message to which the server gives its id and its stream, signed."""
        flat = [part.encode() if isinstance(part, str) else part for part in fields]
        content = self._domain("latest") + _encode(_without(flat, b"id"))
        return [*(part.decode() for part in flat), "sig", self._signature(_LATEST, content).decode()]

    def sign_joined(self, stream: str, fields: Sequence[Field], size: int, rest: bytes) -> list[Field]:
        """Return the flat fields, signed, of a message whose first argument will be the results of `size` members.

        `rest` is the JSON after that list. The server adds the arguments.
        """
        flat = [part.encode() if isinstance(part, str) else part for part in fields]
        content = self._domain("joined", stream, str(size), rest) + _encode(flat)
        return [*flat, SIG, self._signature(_JOINED, content)]

    def sign_result(self, callback_id: str, index: int, size: int, result: bytes) -> bytes:
        """Return the result (JSON) of a member of a group with its signature, as a JSON text."""
        signature = self._signature(_WHOLE, self._result(callback_id, index, size, result))
        return orjson.dumps(f"{signature.decode()} {result.decode()}")

    def sign_dead_letter(self, fields: Sequence[Field]) -> list[Field]:
        """Return the flat fields of a dead letter, signed."""
        flat = [part.encode() if isinstance(part, str) else part for part in fields]
        return [*flat, SIG, self._signature(_WHOLE, self._domain("dead") + _encode(flat))]

    def sign_schedule(self, name: str, content: bytes) -> str:
        """Return the signature of a schedule's definition."""
        return self._signature(_WHOLE, self._domain("schedule", name, content)).decode()

    # --- checking --------------------------------------------------------------------------------

    def check(self, stream: str, delivery: Delivery) -> None:
        """Raise SignatureError unless a delivery of this stream is signed with a key that is accepted.

        Notes on the delivery that it is, so it is checked once. The results of a group are replaced by their JSON.
        """
        if delivery.verified:
            return
        signature = delivery.fields.get(SIG)
        if signature is None:
            self._refuse_unsigned("the message")
        else:
            form, key_id, given = _parsed(signature)
            flat = delivery.flat
            flat = flat[:-2] if flat[-2] == SIG and flat[:-2:2].count(SIG) == 0 else _without(flat, SIG)
            arguments = None
            match form:
                case "v1-latest":
                    content = self._domain("latest") + _encode(_without(flat, b"id"))
                case "v1-joined":
                    arguments, size, rest = self._joined_arguments(delivery)
                    content = self._domain("joined", stream, str(size), rest) + _encode(_without(flat, b"args"))
                case _:
                    content = self._message(stream) + _encode(flat)
            self._compare("the message", key_id, content, given)
            if arguments is not None:
                delivery.replace_arguments(arguments)
        delivery.verified = True

    def accepts(self, stream: str, delivery: Delivery) -> bool:
        """Is this delivery signed with a key that is accepted?"""
        try:
            self.check(stream, delivery)
        except SignatureError:
            return False
        return True

    def check_dead_letter(self, entry_id: str, flat: Sequence[bytes]) -> None:
        """Raise SignatureError unless a dead letter was signed by a worker that had accepted its message."""
        content = self._domain("dead") + _encode(_without(flat, SIG))
        self._check(f"the dead letter {entry_id}", _last(flat, SIG), content)

    def check_schedule(self, name: str, content: bytes, signature: str) -> None:
        """Raise SignatureError unless a schedule's definition is signed with a key that is accepted."""
        self._check(
            f"the schedule {name!r}", signature.encode() or None, self._domain("schedule", name, content)
        )  # fmt: skip

    def _check(self, what: str, signature: bytes | None, content: bytes) -> None:
        if signature is None:
            self._refuse_unsigned(what)
            return
        form, key_id, given = _parsed(signature)
        if form != _WHOLE:
            raise SignatureError(f"the signature of {what} has the form {form!r}, which is that of a message")
        self._compare(what, key_id, content, given)

    def _compare(self, what: str, key_id: str, content: bytes, given: bytes) -> None:
        digest = self._keys.digest(key_id, content)
        if digest is None:
            known = ", ".join(map(repr, self._keys.ids))
            raise SignatureError(
                f"{what} is signed with the unknown key {key_id!r}; accepted here: {known}; add that key if it is yours"
            )
        if not hmac.compare_digest(digest, given):
            raise SignatureError(
                f"the signature (key {key_id!r}) is not that of {what}: it was changed, moved to another stream or "
                "namespace, or signed with another key of this id"
            )

    def _refuse_unsigned(self, what: str) -> None:
        if not self._keys.accept_unsigned:
            known = ", ".join(map(repr, self._keys.ids))
            raise SignatureError(
                f"{what} is not signed; accepted here: {known}; if you trust it, give --accept-unsigned "
                "(accept_unsigned=True)"
            )

    def _joined_arguments(self, delivery: Delivery) -> tuple[bytes, int, bytes]:
        """Check the results of a group. Return the arguments with them, how many they are, and the JSON after them."""
        callback_id = delivery.fields.get(b"id", b"")
        texts, rest = _results_and_rest(delivery.fields.get(b"args", b""))
        results = [
            self._checked_result(callback_id, index, len(texts), packed) for index, packed in enumerate(texts, 1)
        ]
        return b"[[" + b",".join(results) + b"]" + rest, len(results), rest

    def _checked_result(self, callback_id: bytes, index: int, size: int, packed: bytes) -> bytes:
        """Return the result of a member, a JSON text with its signature or without. Raises SignatureError."""
        what = f"the result of member {index} of {size} of the group"
        signature = signature_of_result(packed)
        if signature is None:
            self._refuse_unsigned(what)
            return packed
        result: bytes = orjson.loads(packed).encode()[len(signature) + 1 :]
        self._check(what, signature, self._result(callback_id, index, size, result))
        return result

    # --- what is signed --------------------------------------------------------------------------

    def _signature(self, form: str, content: bytes) -> bytes:
        digest = self._keys.digest(self._keys.sign_with, content)
        return f"{form}:{self._keys.sign_with}:{digest.hex() if digest else ''}".encode()

    def _domain(self, purpose: str, *more: Field) -> bytes:
        return _encode([part.encode() if isinstance(part, str) else part
                        for part in ("streamq", _WHOLE, purpose, self._namespace, *more)])  # fmt: skip

    def _message(self, stream: str) -> bytes:
        prefix = self._prefix.get(stream)
        if prefix is None:
            prefix = self._domain("message", stream)
            if len(self._prefix) < 1000:
                self._prefix[stream] = prefix
        return prefix

    def _result(self, callback_id: Field, index: int, size: int, result: bytes) -> bytes:
        return self._domain("result", self._group, callback_id, str(index), str(size), result)


def is_signed_and_basic(fields: Mapping[bytes, bytes]) -> bool:
    """Has a message a signature, and beside it nothing but fields that are checked as they are used?"""
    if b"task" not in fields or not fields.keys() <= _BASIC:
        return False
    priority, given = fields.get(b"priority", b"0"), fields.get(b"id")
    return priority.isdigit() and len(priority) < 10 and (not given or IS_PLAIN_ID(given) is not None)


def signature_of_result(packed: bytes) -> bytes | None:
    """Return the signature of a group member's result, as a join hash holds it. None if it is not signed."""
    found = _SIGNED_RESULT.match(packed)
    return None if found is None else found[1]


def _results_and_rest(args: bytes) -> tuple[list[bytes], bytes]:
    """Return the JSON texts in the list that is the first argument, byte for byte, and the JSON after that list."""
    results: list[bytes] = []
    try:
        text = args.decode()
        at = 2 if text.startswith("[[") else -1
        while at > 0:
            _, end = _JSON.raw_decode(text, at)
            results.append(text[at:end].encode())
            if text[end : end + 1] == "]":
                return results, text[end + 1 :].encode()
            at = end + 1 if text[end : end + 1] == "," else -1
    except (ValueError, RecursionError):
        pass
    raise SignatureError("field 'args' does not begin with a list of the results of a group")


def _encode(parts: Iterable[bytes]) -> bytes:
    """Return texts with their lengths in front: no other list of texts gives the same bytes."""
    return b"".join([b"%d:%b," % (len(part), part) for part in parts])


def _without(flat: Sequence[bytes], name: bytes) -> list[bytes]:
    """Return flat fields without those of this name."""
    pairs = zip(flat[::2], flat[1::2], strict=False)
    return [part for pair in pairs if pair[0] != name for part in pair]


def _last(flat: Sequence[bytes], name: bytes) -> bytes | None:
    return dict(zip(flat[::2], flat[1::2], strict=False)).get(name)


def _parsed(signature: bytes) -> tuple[str, str, bytes]:
    """Return form, key id and digest of a field `sig`. Raises SignatureError if it is none."""
    found = _SIGNATURE.fullmatch(signature)
    if found is None:
        raise SignatureError(f"field 'sig' is {shown(signature)}, which is no signature")
    return found[1].decode(), found[2].decode(), bytes.fromhex(found[3].decode())
