"""Names: which texts can name something, and how two of them are joined to one. Pure: knows no key.

Everything that is named by somebody else passes here: task names, ids, tiers, groups, consumers, schedules, namespaces,
streams, and the keys that tasks count by. A name is matched whole, so it must be clear where it ends:

- Names are joined by `|`, and no name has one. A key may have one: `qualified` marks it.
- The parts of a Redis key are separated by `:`. `wire/keys.py` says which names must not have one, and why.
- No name has a character that cannot be seen: control characters, line separators, marks that turn the direction of
  text, invisible ones. Such a name could forge a line of a log, or look like another name.

The set of refused characters is written down here and not taken from Python's Unicode tables: producers and workers
with different versions of Python must agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, StreamqError, UndecodableError

SEPARATOR: Final = "|"  # between two names that are joined to one
# Control characters, the soft hyphen, marks of direction, line separators, invisible operators, tags, lone surrogates.
UNSEEN: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
BLANKS: Final = r"\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"


@dataclass(frozen=True, slots=True)
class NameRule:
    """The rule for one kind of name: its length, and the characters that it must not have beside the unseen ones."""

    longest: int
    without: str  # characters that are refused
    blanks: bool = False  # may it have spaces?

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of the whole name."""
        blanks = BLANKS if self.blanks else f" {BLANKS}"
        return re.compile(f"[^{UNSEEN}{blanks}{re.escape(self.without)}]{{1,{self.longest}}}")

    def __str__(self) -> str:
        blanks = "" if self.blanks else "no white space, "
        also = f", none of {' '.join(self.without)}" if self.without else ""
        return f"1 to {self.longest} characters, {blanks}no control or invisible characters{also}"


NAME: Final = NameRule(200, "|")
RULES: Final = {
    "task": NAME,
    "task_id": NAME,
    "workflow_id": NameRule(190, "|"),  # the ids of its steps end in their number
    "schedule": NameRule(170, "|@"),  # the id of a tick ends in '@' and its time
    "namespace": NameRule(100, "|*?[]\\"),  # it begins the pattern of a SCAN
    "group": NameRule(100, "|:*?[]\\"),
    "tier": NameRule(100, "|:*?[]\\"),
    "stream": NameRule(200, "|*?[]\\"),
    "consumer": NameRule(100, "|"),
    "limit": NameRule(100, "|@"),  # the name of a limit or a circuit breaker
    "key": NameRule(500, "", blanks=True),  # what tasks are counted by, or happen once for
}
"""The rule of each kind of name."""
_PATTERNS: Final = {kind: rule.pattern for kind, rule in RULES.items()}
IS_PLAIN_ID: Final = re.compile(rb"[!-{}~]{1,200}").fullmatch
"""Is this certainly a valid id? All ids of printable ASCII are; others are checked in full."""


def is_name(kind: str, value: object) -> bool:
    """Can this value name something of this kind?"""
    return isinstance(value, str) and _PATTERNS[kind].fullmatch(value) is not None


def check_name(kind: str, value: str, *, what: str = "", error: type[StreamqError] = ConfigurationError) -> str:
    """Return a name. Raises `error` if it cannot name something of this kind; `what` says where it comes from."""
    if is_name(kind, value):
        return value
    shown = repr_of(value)
    if len(shown) > 100:
        size = f"of {len(value)} characters" if isinstance(value, str) else ""
        shown = f"{shown[:80]}... {size}".rstrip()
    raise error(f"{what or kind}={shown} cannot be used: give {RULES[kind]}")


def check_field(kind: str, value: str, field: str) -> str:
    """Return a name in the field of a message. Raises UndecodableError if it cannot be one."""
    if is_name(kind, value):
        return value
    shown = repr(value[:80])
    raise UndecodableError(f"field {field!r} is {shown}{'...' * (len(value) > 80)}, which is not {RULES[kind]}")


# --- joined names --------------------------------------------------------------------------------


def qualified(owner: str, key: str) -> str:
    """Return the name of a key that belongs to an owner ('': to nobody).

    Different pairs have different names. A key without an owner is its own name, unless it has a `|`.
    """
    return f"{owner}{SEPARATOR}{key}" if owner or SEPARATOR in key else key
