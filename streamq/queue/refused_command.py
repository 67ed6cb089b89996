"""What a refused command was about: which command of its script was refused, and which of its keys is to blame.

The server says why, seldom where. The error of a script has the number of a line, and we have its source. The type of
each key is asked for with `TYPE`; a key that has not the type of its family is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from streamq.client import Command
from streamq.client.scripts import with_source
from streamq.errors import BrokerError
from streamq.queue.server_errors import UNPACKABLE

CALLED = re.compile(r"\bp?call\('([A-Z]+)'(?:, '([A-Z]+)')?")
SCRIPTS = frozenset({"EVALSHA", "EVAL"})
MOST_KEYS = 30  # keys of one command whose types are asked for, and at most a tenth as many are named
_FAMILIES = {
    **dict.fromkeys(("dedup", "result", "id", "progress", "seen", "durable"), "string"),
    **dict.fromkeys(
        ("latest", "join", "stats", "once", "circuit", "rate", "schedules", "ticked", "workflow", "operation"), "hash"
    ),
    **dict.fromkeys(("circuits", "limits", "permits", "called", "line", "ticks", "operations"), "zset"),
}
_TYPES = {"zset": "sorted set"}  # as people call it


def said(error: BrokerError, command: Command) -> str:
    """Return an error with the command of the script that was refused."""
    text = str(error).rstrip(".")
    if error.code not in {"ERR", UNPACKABLE} and not text.startswith(error.code):
        text = f"{error.code} {text}"
    refused = refused_command(error, command)
    return f"{text} (at {refused})" if refused else text


def refused_command(error: BrokerError, command: Command) -> str:
    """Return the name of the command in a script that was refused; empty if that is not known."""
    number = error.script_line
    source = with_source(command) if number and not isinstance(command, bytes) else None
    if source is None:
        return ""
    lines = source[1].splitlines()
    found = CALLED.findall(lines[number - 1]) if 0 < number <= len(lines) else []
    return " or ".join(dict.fromkeys(" ".join(filter(None, words)) for words in found))


def keys_of(command: Command) -> list[str]:
    """Return the keys of a command that runs a script."""
    if isinstance(command, bytes) or len(command) < 3 or command[0] not in SCRIPTS:
        return []
    names = command[3 : 3 + int(command[2])]
    return [as_text(name) for name in dict.fromkeys(names)][:MOST_KEYS]


def ask_types(names: Sequence[str]) -> list[Command]:
    """Return the commands that ask for the type of each key."""
    return [("TYPE", name) for name in names]


def wrong_keys(names: Sequence[str], types: Sequence[object], namespace: str) -> str:
    """Name the keys whose type is not that of their family; empty if there is none."""
    found = []
    for name, kind in zip(names, types, strict=True):
        if isinstance(kind, bytes | str):
            wanted, has = _wanted_type(name, namespace), as_text(kind)
            if has not in {"none", wanted} and not name.startswith(f"{namespace}:result:"):
                found.append(f"the key {name[:200]!r} is a {_TYPES.get(has, has)}, no {_TYPES.get(wanted, wanted)}")
    return "; ".join(found[: MOST_KEYS // 10])


def wrong_key(name: str, namespace: str) -> str:
    """Name the one key of a command that was refused because it has another type."""
    wanted = _wanted_type(name, namespace)
    return f"the key {name[:200]!r} is no {_TYPES.get(wanted, wanted)}"


def _wanted_type(name: str, namespace: str) -> str:
    """Return the type of a key by its name (see docs/wire-format.md)."""
    family = name.removeprefix(f"{namespace}:").partition(":")[0] if name.startswith(f"{namespace}:") else ""
    if family in _FAMILIES:
        return _FAMILIES[family]
    if name.endswith(":messages") or ":crashes:" in name or ":leases:" in name:
        return "hash"
    return "zset" if name.endswith(":delayed") or ":alive:" in name else "stream"


def as_text(name: object) -> str:
    """Return a word of a command as text."""
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)
