"""What the error of a missing right says: the command and the key that were refused, and the remedy.

The server seldom names the key, and a Redis not even the command of a script. Both are asked for: whether this user may
run a command on a key is known to the server alone. Where it does not tell (before Redis 7, or a user that may not
EVAL), all that may be meant are named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final, cast

import hiredis
import orjson

from streamq.client import Command
from streamq.client.scripts import with_source
from streamq.errors import BrokerError
from streamq.queue.refused_command import CALLED, MOST_KEYS, SCRIPTS, as_text, keys_of, refused_command, said
from streamq.wire.acl import patterns_of, rule_for_key
from streamq.wire.command_line import OWN_TIERS, in_quotes, key_options, own_tiers_forgotten
from streamq.wire.keys import Keys
from streamq.wire.rights import ROLES, Role, rights_of

_MOST_KNOWN: Final = 256  # commands and scripts: hundreds of settlements may be refused for one of them
_MOST_SHOWN: Final = 8  # keys in a text
_MOST_ASKED: Final = 200  # pairs of a command and a key in one question
_ASK: Final = re.compile(r"run ['\"]streamq doctor --role")  # how the remedy begins
_MAY_NOT: Final = """local refused = {}
for i, words in ipairs(cjson.decode(ARGV[1])) do
  if not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = i end
end
return refused"""
_NAMES_ITSELF: Final = "this user may not run "  # see `ask` in _shared.lua
_NAMED_KEY: Final = re.compile(rf"{_NAMES_ITSELF}'([^']*)' on '(.*)'")
_OF_KEY: Final = re.compile(r"access (?:a|(?:at least )?one of the) key")
_INSIDE: Final = re.compile(r"executing the script|in script")
_UNKNOWN: Final = re.compile(
    r"(?i)unknown (?:redis )?command called from script|invalid command passed|^unknown command '"
)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A command on a key that may have been refused. `words` are such a command, as the server is asked about it."""

    command: str
    key: str
    words: tuple[str, ...]


def remedy(role: Role | None = None, options: Sequence[str] = ()) -> str:
    """Return what to do about a missing right of a user with this role; None if the role is not known.

    The doctor checks the rights of one role: by default it would tell a producer to take those of a worker. `options`
    select the queue, as `key_options` returns them: without them it would grant rights to another one.
    """
    which = "" if role else f" (ROLE is {', '.join(ROLES[:-1])} or {ROLES[-1]})"
    same = " with the same options" if options else ""
    found = f"it names the missing rights, and 'streamq acl'{same} prints rules with them"
    ask = in_quotes(shlex.join(("streamq", "doctor", "--role", role or "ROLE", *options)))
    return f"run {ask} as this user{which}: {found}"


def with_remedy(
    text: str, code: str, role: Role | None = None, keys: Keys | None = None, *, options: Sequence[str] = ()
) -> str:  # fmt: skip
    """Return the text of an error with the remedy if a right is missing (`code` is NOPERM), once.

    `keys` are those of the queue that it is about; where they are not known, `options` are those that select it.
    """
    if code != "NOPERM" or _ASK.search(text):
        return text
    return f"{text.rstrip('.')}; {remedy(role, options if keys is None else key_options(keys))}"


def without_remedy(text: str) -> str:
    """Return a text without the remedy that `with_remedy` added, and what follows it."""
    found = _ASK.search(text)
    return text if found is None else text[: found.start()].removesuffix("; ")


def explained(
    error: BrokerError, command: Command, keys: Keys, role: Role | None = None, refused: Sequence[Suspect] = ()
) -> BrokerError:
    """Return the error of a missing right with the command, the key that was refused, and the remedy; others as is.

    `refused` is what the server said of the suspects. The text has no other argument of the command: these may be
    secret.
    """
    if error.code != "NOPERM" or _ASK.search(str(error)):
        return error
    text = f"{said(error, command).rstrip('.')}, {where_refused(error, command, keys, refused)}"
    text = with_remedy(text, error.code, role, keys)
    if own_tiers_forgotten(keys, _refused_names(error, command, keys, refused)):
        text += f"; if this queue has tiers of its own, name them: {OWN_TIERS}, in a program RedisBroker(tiers=...)"
    return BrokerError(text, code=error.code)


def _refused_names(error: BrokerError, command: Command, keys: Keys, refused: Sequence[Suspect]) -> list[str]:
    """Return the keys that were refused, or may have been; none where the command was, whatever the key."""
    if named := _NAMED_KEY.search(str(error)):
        return [named[2]]
    if not _OF_KEY.search(str(error)):
        return []
    return [one.key for one in refused] or keys_in(command, keys)


def where_refused(error: BrokerError, command: Command, keys: Keys, refused: Sequence[Suspect] = ()) -> str:
    """Return what was refused, as a part of a sentence: "in a script (EVALSHA) on queue:standard".

    The command in brackets is the one that was refused. Where one inside the script was, that is named instead.
    """
    name = as_text(_words(command)[0])
    if _is_script(command):
        whole = _OF_KEY.search(str(error)) and not _INSIDE.search(str(error))
        name = f"a script ({name})" if whole else "a script"
    among = suspects(error, command, keys)
    chosen = list(refused) or among
    if chosen:
        inside = _INSIDE.search(str(error)) is not None
        inner = refused_command(error, command)
        known = not inside or (inner and " or " not in inner)
        names = list(dict.fromkeys(one.key for one in chosen))
        what = "" if known else f", {' or '.join(dict.fromkeys(one.command for one in chosen))}"
        doubt = "one of " if len(names) > 1 and (inside or not refused) else ""
        return f"in {name}{what} on {doubt}{_listed(names)}"
    names = [] if _NAMES_ITSELF in str(error) else keys_in(command, keys)
    return f"in {name} on {_listed(names)}" if names else f"in {name}"


def may_be_refused(error: BrokerError, command: Command, keys: Keys) -> frozenset[tuple[str, str]] | None:
    """Return the commands of a script, in capitals, and their keys, of which one was refused for a missing right.

    None if any may be meant, or for another reason; no pair if the script itself may not be run.
    """
    text = str(error)
    if error.code != "NOPERM" or not _is_script(command):
        return None
    if named := _NAMED_KEY.search(text):
        return frozenset(((named[1].upper(), named[2]),))
    if not _OF_KEY.search(text) and not _INSIDE.search(text):
        return frozenset()
    among = frozenset((one.command, one.key) for one in suspects(error, command, keys))
    return among if among and int(command[2]) < MOST_KEYS else None


def suspects(error: BrokerError, command: Command, keys: Keys) -> list[Suspect]:
    """Return what may have been refused, if the error does not tell: of a script, or of a command for many keys."""
    if error.code != "NOPERM" or isinstance(command, bytes) or _NAMES_ITSELF in str(error):
        return []
    if _INSIDE.search(str(error)):
        inner = refused_command(error, command)
        return _inside(inner.split(" or ") if inner else _called_in(command), keys_of(command), keys)
    names = keys_in(command, keys)
    if len(names) < 2 or not _OF_KEY.search(str(error)):
        return []
    return [Suspect(as_text(command[0]), name, _about(command, name)) for name in names]


def ask_which(some: Sequence[Suspect]) -> Command:
    """Return the command that asks which of these are refused; the reply has their places, from 1 on."""
    return ("EVAL", _MAY_NOT, 0, orjson.dumps([one.words for one in some[:_MOST_ASKED]]))


def commands_to_ask_for(error: BrokerError, command: Command) -> list[str]:
    """Return the commands of which one is not there, if that is what the server says; else none."""
    found = _UNKNOWN.search(str(error))
    if not found:
        return []
    if found[0].endswith("'"):
        return [as_text(_words(command)[0])]
    named = refused_command(error, command)
    return list(dict.fromkeys(name.partition(" ")[0] for name in ([named] if named else _called_in(command))))


def not_there(error: BrokerError, named: Sequence[str], reply: Any) -> BrokerError:
    """Return the error of a command that the server does not have; `reply` is that of COMMAND INFO on those `named`."""
    known = isinstance(reply, list) and len(reply) == len(named)
    absent = [name for name, found in zip(named, reply, strict=True) if not found] if known else []
    names = ", ".join(absent) or "/".join(named[:_MOST_SHOWN])
    return BrokerError(f"this server has no command {names}: it was renamed or disabled there", code=error.code)


def named_by(reply: Any, some: Sequence[Suspect]) -> list[Suspect]:
    """Return those that are refused by the reply of the server; none if it does not know."""
    return [some[place - 1] for place in reply] if isinstance(reply, list) else []


def _inside(commands: Iterable[str], names: Sequence[str], keys: Keys) -> list[Suspect]:
    """Return each of the commands with each of the keys that streamq uses it on; with all keys, if there is none."""
    rules = [(name, rule_for_key(keys, name)) for name in names]
    found = [(command, name) for command in commands for name, rule in rules if rule in _patterns(keys, command)]
    pairs = found or [(command, name) for command in commands for name in names]
    return [Suspect(command, name, (*command.split(), name)) for command, name in pairs]


@lru_cache(maxsize=_MOST_KNOWN)
def _patterns(keys: Keys, command: str) -> frozenset[str]:
    """Return the rules for all keys that streamq uses a command on."""
    right = command.lower().replace(" ", "|")
    kinds = {one.subject for one in rights_of(ROLES) if right in one.commands and one.subject[:1].isalpha()}
    return frozenset(pattern for kind in kinds for pattern in patterns_of(keys, kind))


def _called_in(command: Command) -> list[str]:
    """Return the commands that the script of a command calls."""
    source = None if isinstance(command, bytes) else with_source(command)
    return list(_calls(source[1])) if source is not None else []


@lru_cache(maxsize=_MOST_KNOWN)
def _calls(source: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(filter(None, words)) for words in CALLED.findall(source)))


def _about(command: Sequence[object], key: str) -> tuple[str, ...]:
    """Return this command for one of its keys alone."""
    if _is_script(command):
        return ("EVALSHA", "-", "1", key)
    if command[0] == "XREADGROUP":
        return ("XREADGROUP", "GROUP", "-", "-", "STREAMS", key, ">")
    return (as_text(command[0]), key)


def _is_script(command: Command | Sequence[object]) -> bool:
    return not isinstance(command, bytes) and command[0] in SCRIPTS


def keys_in(command: Command, keys: Keys) -> list[str]:
    """Return the keys of a command: those of a script, and what is named as a key of this namespace or its tiers."""
    own = {name for tier in keys.tiers for name in asdict(tier).values()}
    names = [name for name in map(as_text, _words(command)[1:]) if name in own or name.startswith(f"{keys.namespace}:")]
    return keys_of(command) or list(dict.fromkeys(names))


def _words(command: Command) -> Sequence[object]:
    if not isinstance(command, bytes):
        return command
    reader = hiredis.Reader()
    reader.feed(command)
    return cast("list[bytes]", reader.gets())


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(name[:100] for name in names[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
