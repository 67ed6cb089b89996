"""P11, the table of rights: it has every command of every script, every key, every channel; and the rules it makes."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

import streamq.scripts
from streamq.errors import ConfigurationError
from streamq.scripts import step
from streamq.wire.acl import KINDS, acl_rules, escaped, key_names, patterns_of, rule_for_key
from streamq.wire.keys import Keys
from streamq.wire.rights import _TABLE, BASE, FEATURES, ROLES, STEPS, features_of, rights_of
from streamq.wire.tiers import DEFAULT_TIERS

FOLDER = Path(streamq.scripts.__file__).parent
KEYS = Keys.of("queue", "workers", DEFAULT_TIERS)
_OPTIONS = {
    "CONSUMERS", "COUNT", "DELCONSUMER", "FORCE", "GROUPS", "IDLE", "JUSTID", "LIMIT", "MAXLEN", "NOGROUP", "NX", "OOM",
    "PX", "READONLY", "SAMPLES", "STREAM", "USAGE", "WITHSCORES", "WRONGTYPE",
}  # fmt: skip
"""Words of the scripts that are no commands."""
_ASKING = {"ask", "ask_by_trial"}  # they try the commands that others ask for
_ASKED = {"XGROUP": "xgroup|delconsumer"}  # as _shared.lua says
_FUNCTION = re.compile(r"^(?:local )?function ([\w.]+)\(", re.MULTILINE)
_EFFECTS = ("effects.", "checks.")


def functions(source: str) -> dict[str, str]:
    """Return the bodies of the functions of a script by their names; '' is what stands outside of them."""
    bodies, outside = {}, []
    lines = source.splitlines()
    at = 0
    while at < len(lines):
        found = _FUNCTION.match(lines[at])
        if found is None:
            outside.append(lines[at])
            at += 1
            continue
        end = at if re.search(r"\bend\s*$", lines[at]) else lines.index("end", at)
        bodies[found[1]] = "\n".join(lines[at : end + 1])
        at = end + 1
    return {**bodies, "": "\n".join(outside)}


def called_in(text: str) -> set[str]:
    """Return the commands that a text names, as ACL rules have them: it calls them, or asks for the right to."""
    found = set()
    for line in text.splitlines():
        words = re.findall(r"'([A-Z]{2,})'", line)
        for place, word in enumerate(words):
            if word in ("XINFO", "MEMORY"):
                found.add(f"{word.lower()}|{words[place + 1].lower()}")
            elif word not in _OPTIONS:
                found.add(_ASKED.get(word, word.lower()))
    return found


def commands_of(source: str, *entries: str) -> set[str]:
    """Return the commands that a script can call from these functions on; from its beginning, if there are none.

    Those of side effects stand apart: only those that an entry names are followed.
    """
    bodies = functions(re.sub(r"--.*", "", source))
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [*(entries or [""])]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found |= called_in(bodies[name]) if name not in _ASKING else set()
        waiting += [
            other
            for other in bodies
            if other and not (other.startswith(_EFFECTS) and not entries)
            if re.search(rf"(?<![\w.]){re.escape(other)}\b", bodies[name])
        ]
    return found


SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.lua") if not path.stem.startswith("_"))
EFFECTS = sorted(
    name.removeprefix("effects.") for name in functions(step("ack_side_effects").source) if name.startswith("effects.")
)
FEATURE_OF = {name: feature for feature, names in STEPS.items() for name in names.split()}


def granted(feature: str) -> set[str]:
    """Return the commands of a feature, or of two, of all roles together."""
    return {command for name, _, _, commands in _TABLE if name in feature.split() for command in commands.split()}


def test_each_script_belongs_to_a_feature():
    assert sorted(FEATURE_OF) == sorted([*SCRIPTS, *EFFECTS])


def commands_of_step(name: str) -> set[str]:
    if name in SCRIPTS:
        return commands_of(step(name).source)
    return commands_of(step("ack_side_effects").source, f"effects.{name}", f"checks.{name}")


def test_the_reader_of_scripts_sees_all():
    """Each call in the text of a script is seen, whatever function it stands in."""
    every = "\n".join(re.sub(r"--.*", "", path.read_text()) for path in FOLDER.glob("*.lua"))
    seen = set().union(*map(commands_of_step, (*SCRIPTS, *EFFECTS)))
    assert called_in(every) == seen
    assert len(seen) > 30
    # No name of a command is put together: those that are passed on stand in the text.
    assert not re.search(r"p?call\((?!'|ask, |name, key|unpack\(words\)|cjson\.decode|function\()", every)


@pytest.mark.parametrize("name", [*SCRIPTS, *EFFECTS])
def test_the_table_has_the_commands_of_a_script(name):
    """A script that calls one more command fails this until the table has it."""
    assert commands_of_step(name) <= granted(FEATURE_OF[name])


@pytest.mark.parametrize("role", ROLES)
def test_a_script_can_be_called_where_its_commands_are(role):
    """Where a key is given to scripts, they may be called: the server checks EVALSHA for each key."""
    rules = acl_rules(KEYS, [role])
    assert ("+evalsha" in rules.commands) == ("+eval" in rules.commands)


def test_every_key_is_somebodys():
    """Each kind of key that wire/keys.py names is in the table; so is each channel."""
    rules = acl_rules(KEYS, ROLES)
    for kind in KINDS:
        for name in key_names(KEYS, kind, "x"):
            assert any(fnmatch.fnmatchcase(name, rule[1:]) for rule in rules.keys), name
    assert set(rules.channels) == {"&queue:wake", "&queue:result:*", "&queue:progress:*", "&queue:once:*"}


def test_only_the_wanted_features():
    few = acl_rules(KEYS, ["producer"], [])
    assert few.features == ("connect", "enqueue")
    assert not few.channels
    assert "~queue:dedup:*" not in few.keys
    assert "~queue:dedup:*" in acl_rules(KEYS, ["producer"], ["dedup"]).keys
    assert set(few.keys) < set(acl_rules(KEYS, ["producer"]).keys)
    assert "+config|get" in acl_rules(KEYS, ["monitor"], ["doctor"]).commands
    assert "+config|get" not in acl_rules(KEYS, ["monitor"]).commands


def test_dangerous_commands_are_nobodys():
    """No role may remove keys it does not know, read the configuration, or manage users, unless it asks for that."""
    commands = set().union(*(acl_rules(KEYS, [role]).commands for role in ROLES))
    assert not commands & {"+keys", "+flushall", "+config|get", "+acl|whoami", "+scan", "+info", "+client|kill"}
    assert not any(rule.startswith(("+@", "allkeys", "~*")) for rule in commands)


def test_a_program_of_several_roles():
    both, one, other = (acl_rules(KEYS, roles) for roles in (["operator", "monitor"], ["operator"], ["monitor"]))
    assert set(both.commands) == set(one.commands) | set(other.commands)
    assert set(both.keys) == set(one.keys) | set(other.keys)


def test_an_unknown_feature():
    with pytest.raises(ConfigurationError, match="producer has no feature 'consume': give some of connect, enqueue"):
        features_of(["producer"], ["consume"])
    assert features_of(["producer", "worker"], ["consume"]) == ["connect", "enqueue", "consume"]
    for role in ROLES:
        assert BASE[role] in features_of([role], [])
        assert rights_of([role], list(features_of([role]))) == rights_of([role])
    assert {right.feature for role in ROLES for right in rights_of([role], None)} == {
        name for name, feature in FEATURES.items() if feature.roles
    }


def test_patterns_match_one_name():
    """What is special in a pattern is escaped; a `*` stands only where an id, a key or a time stands."""
    keys = Keys("a\\b", "g", ())
    assert patterns_of(keys, "result") == ["~a\\\\b:result:*"]
    assert patterns_of(keys, "&wake") == ["&a\\\\b:wake"]
    assert patterns_of(keys, "") == []
    assert escaped("a*b?[c]") == "a\\*b\\?\\[c\\]"
    for kind in KINDS:
        for name, pattern in zip(key_names(KEYS, kind, "x"), patterns_of(KEYS, kind), strict=True):
            assert rule_for_key(KEYS, name) == pattern or kind in ("accepted_workflow", "totals")
    assert rule_for_key(KEYS, "queue:nothing") == "~queue:*"
    assert rule_for_key(KEYS, "other") == "~other"


def test_the_line():
    """The password is a word to replace. redis-cli reads a name with quotes as it is."""
    line = acl_rules(KEYS, ["monitor"]).line("watch")
    assert line.startswith("ACL SETUSER watch reset resetchannels on >PASSWORD ~queue:critical")
    assert "'" not in line
    assert '"~a\\"b:dead"' in acl_rules(Keys('a"b', "g", ()), ["operator"]).line("o").split()
    assert "+select" in acl_rules(KEYS, ["monitor"], database=True).commands
