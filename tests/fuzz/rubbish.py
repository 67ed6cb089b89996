"""Values that nobody should send: generated from a seeded random number generator, so that a seed repeats them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

NUMBERS = (
    0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 1e308, 1.79e306, 1e-320, -0.0, math.inf,
    -math.inf, math.nan, 0.5, 253402300799, 253402300800000, 9.3e15,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "a b", "\x00", "\x1b[31mred", "x\r\nERROR forged", "é\u2028😀", "|", ":", "@", "*", "nan", "inf",
    "-0", "+1", "1_000", " 5", "0x10", "1e400", "9" * 400, "null", "[]", "{}", "[[", '{"a":', "[null]",
    "true", "x" * 5000,
    "done", "started", "workers", "released", "0-0", "18446744073709551615-18446744073709551615", "good", "../..",
)  # fmt: skip
BYTES = (b"\xff", b"\x80\x81", b"\xed\xa0\x80", b"\x00" * 40, b"[" * 3000, b'{"a":' * 1500)


def number(random: Random) -> Any:
    """Return a number, most of them at an edge."""
    return random.choice(NUMBERS) if random.random() < 0.8 else random.uniform(-1e6, 1e6)


def text(random: Random) -> str:
    """Return a text."""
    chosen = random.random()
    if chosen < 0.7:
        return random.choice(TEXTS)
    if chosen < 0.9:
        return str(number(random))
    return "".join(chr(random.randrange(1, 0x2FFF)) for _ in range(random.randrange(12)))


def raw(random: Random) -> bytes:
    """Return what a field or a value of a key can hold."""
    return random.choice(BYTES) if random.random() < 0.2 else text(random).encode(errors="replace")


def value(random: Random, depth: int = 0) -> Any:  # noqa: PLR0911 - one for each kind
    """Return any object: what a caller may give by mistake."""
    kinds = ("number", "text", "none", "bool", "bytes", "list", "dict", "time", "delta", "object", "tuple")
    match random.choice(kinds):
        case "number":
            return number(random)
        case "text":
            return text(random)
        case "bytes":
            return raw(random)
        case "bool":
            return random.random() < 0.5
        case "list" | "tuple" if depth < 3:
            return [value(random, depth + 1) for _ in range(random.randrange(3))]
        case "dict" if depth < 3:
            return {text(random): value(random, depth + 1) for _ in range(random.randrange(3))}
        case "time":
            return random.choice((datetime.max, datetime.min, datetime.max.replace(tzinfo=UTC), datetime(1969, 1, 1)))  # noqa: DTZ001, DTZ901
        case "delta":
            return random.choice((timedelta.max, timedelta.min, timedelta(0), timedelta(seconds=-1)))
        case "object":
            return random.choice((object(), value, int, ...))
        case _:
            return None


class Unspeakable:
    """An object whose every text raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise SystemExit("no str")
