"""ACL rules: the table of `wire.rights` as rules of the server, for the keys of one namespace. Pure.

The patterns are made by `wire.keys`, from names with a `*` where an id, a key or a time stands. A key pattern allows
reading and writing: Redis 6.2 knows no other, and the server asks for both of every key that a script is given.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Final

from streamq.wire.keys import Keys, TierKeys
from streamq.wire.rights import ANY, Role, features_of, rights_of

PLACEHOLDER = "PASSWORD"  # stands for the password, which is never printed
_MOST_KNOWN: Final = 256  # sets of patterns: a refused command is asked about by each of hundreds of settlements
_MARK = "\0"  # no name contains it
_SPECIAL = re.compile(r"([*?\[\]\\])")
_QUOTED = re.compile(r"[\"'\s]")

_NO_KEYS = frozenset({"wake", "retry_member"})  # a channel, and a member of a sorted set
KINDS_OF_TIER = tuple(field.name for field in fields(TierKeys))
KINDS = KINDS_OF_TIER + tuple(
    name
    for name, member in vars(Keys).items()
    if (isinstance(member, property) or inspect.isfunction(member)) and name[0] != "_" and name not in _NO_KEYS
)
"""Every kind of key that `wire.keys` names."""


@dataclass(frozen=True, slots=True)
class AclRules:
    """The rights of one user: `~` and a pattern for keys, `&` and a pattern for channels, `+` and a command."""

    features: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[str, ...]
    commands: tuple[str, ...]

    def words(self) -> list[str]:
        """Return the rules for ACL SETUSER. They take every other right away."""
        return ["reset", "resetchannels", "on", f">{PLACEHOLDER}", *self.keys, *self.channels, *self.commands]

    def line(self, user: str) -> str:
        """Return the command that makes this user, as redis-cli reads it."""
        return " ".join(_quoted(word) for word in ("ACL", "SETUSER", user, *self.words()))


def acl_rules(
    keys: Keys, roles: Collection[Role], features: Collection[str] | None = None, *, database: bool = False
) -> AclRules:
    """Return the rules for these roles with these features (None: all that they have by themselves).

    `database`: they use another database than 0. Raises ConfigurationError for a feature that none of them can have.
    """
    found = rights_of(roles, features)
    commands = {f"+{command}" for right in found for command in right.commands}
    patterns = without_covered(keys, [one for right in found for one in patterns_of(keys, right.subject)])
    return AclRules(
        features=tuple(features_of(roles, features)),
        keys=tuple(one for one in patterns if one.startswith("~")),
        channels=tuple(one for one in patterns if one.startswith("&")),
        commands=tuple(sorted(commands | ({"+select"} if database else set()))),
    )


def patterns_of(keys: Keys, subject: str) -> list[str]:
    """Return the rules that allow a kind of key (`~`) or channel (`&`) of `wire.rights`; none for an empty kind."""
    return list(_patterns_of(keys, subject))


@lru_cache(maxsize=_MOST_KNOWN)
def _patterns_of(keys: Keys, subject: str) -> tuple[str, ...]:
    sign, kind = ("&", subject[1:]) if subject.startswith("&") else ("~", subject)
    return tuple(sign + _pattern(name) for name in key_names(keys, kind, _MARK)) if kind else ()


def without_covered(keys: Keys, rules: Iterable[str]) -> list[str]:
    """Return the rules, each once, and without those that the rule for all keys of the namespace covers."""
    found, prefix = list(dict.fromkeys(rules)), f"~{escaped(keys.namespace)}:"
    everything = f"{prefix}*"
    return [one for one in found if everything not in found or one == everything or not one.startswith(prefix)]


def key_names(keys: Keys, kind: str, part: str) -> list[str]:
    """Return the names of a kind of key, one for each tier if tiers have it; `part` stands for an id, a key or a name.

    `kind` is a field of `TierKeys`, a member of `Keys`, or `ANY`.
    """
    if kind == ANY:
        prefix = f"{keys.namespace}:"
        outside = (name for tier in keys.tiers for name in asdict(tier).values() if not name.startswith(prefix))
        return [prefix + part, *outside]
    if kind in KINDS_OF_TIER:
        return [asdict(tier)[kind] for tier in keys.tiers]
    member = getattr(keys, kind)
    if isinstance(member, str):
        return [member]
    # The name of a window of counters ends in a number, all others in the part.
    return [keys.stats(0).removesuffix("0") + part if kind == "stats" else str(member(part))]


def rule_for_key(keys: Keys, name: str) -> str:
    """Return the rule that allows this key and all of its kind; that of the namespace if the kind is not known."""
    for pattern, fixed in _rules_of(keys):
        if name.startswith(fixed) if pattern.endswith("*") else name == fixed:
            return pattern
    return f"~{escaped(keys.namespace)}:*" if name.startswith(f"{keys.namespace}:") else f"~{escaped(name)}"


@lru_cache(maxsize=_MOST_KNOWN)
def _rules_of(keys: Keys) -> tuple[tuple[str, str], ...]:
    """Return the rules for all kinds of keys, each with its fixed part."""
    return tuple((pattern, _fixed_part(pattern)) for kind in KINDS for pattern in _patterns_of(keys, kind))


def _fixed_part(pattern: str) -> str:
    """Return a pattern as a name: without sign, `*` at its end, and escapes."""
    return re.sub(r"\\(.)", r"\1", pattern[1:].removesuffix("*"))


def _pattern(name: str) -> str:
    return escaped(name).replace(_MARK, "*")


def escaped(name: str) -> str:
    """Return a name as a pattern that matches this name alone."""
    return _SPECIAL.sub(r"\\\1", name)


def _quoted(word: str) -> str:
    """Return a word as redis-cli reads it: in quotes if it contains some."""
    if not _QUOTED.search(word):
        return word
    return '"' + "".join(f"\\{char}" if char in '\\"' else char for char in word) + '"'
