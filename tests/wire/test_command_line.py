"""Commands of streamq in texts: about the queue that the text is about, and ready for a shell."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

from streamq import RedisBroker, Tier
from streamq.cli.entry import cli
from streamq.cli.server_options import ServerOptions
from streamq.wire.command_line import bring_home, in_quotes, key_options, streamq_command, worker_command, worker_remedy
from tests.docs.pages import ROOT

OWN = [Tier("now", weight=8, threshold=100), Tier("today", threshold=10)]
URL = "redis://bob:hunter2@localhost"
BROKERS = {
    "default": ({}, ()),
    "namespace": ({"namespace": "shop:eu"}, ("--namespace", "shop:eu")),
    "group": ({"group": "mail"}, ("--group", "mail")),
    "own tiers": ({"tiers": [Tier("now", threshold=1), Tier("later")]}, ("--tiers", "now,later")),
    "all": (
        {"namespace": "{shop}", "group": "mail", "tiers": OWN},
        ("--namespace", "{shop}", "--group", "mail", "--tiers", "now,today"),
    ),
    "one tier": ({"tiers": [Tier("now")]}, ("--queue", "queue:now")),
    "one stream": ({"queue_name": "mail:out"}, ("--queue", "mail:out")),
    "one name": ({"queue_name": "jobs"}, ("--queue", "jobs")),
    "its namespace": ({"queue_name": "mail:out", "namespace": "ns"}, ("--namespace", "ns", "--queue", "mail:out")),
}  # fmt: skip


@pytest.mark.parametrize("which", BROKERS)
def test_the_options_select_the_same_keys(which):
    """Those that are the default are left out. A shell reads them back, and no password is among them."""
    given, wanted = BROKERS[which]
    broker = RedisBroker(URL, **given)
    assert key_options(broker.keys) == wanted
    words = shlex.split(streamq_command(broker.keys, "doctor", "--role", "worker"))
    assert words == ["streamq", "doctor", "--role", "worker", *wanted]
    with cli.commands["doctor"].make_context(
        "doctor", words[2:], parent=cli.make_context("streamq", ["doctor"])
    ) as context:
        again = ServerOptions(
            **{name: context.params[name] for name in ("namespace", "group", "queue", "tiers")}
        ).broker()
    assert set(again.keys.tiers) == set(broker.keys.tiers)
    assert (again.keys.namespace, again.keys.group) == (broker.keys.namespace, broker.keys.group)


def test_a_worker_takes_its_tiers_from_its_modules():
    """Its `--tiers` has another sense: it chooses some of them."""
    keys = RedisBroker(URL, tiers=OWN, group="mail").keys
    assert worker_command(keys) == "streamq worker app.tasks"
    assert worker_command(keys, weights="now=1") == "streamq worker app.tasks --tiers now=1"
    one = RedisBroker(URL, queue_name="mail:out").keys
    assert worker_command(one, weights="out=1") == "streamq worker app.tasks --queue mail:out"
    assert worker_command(keys, streams=["queue:x"]) == "streamq worker app.tasks --group mail --queue queue:x"


def test_a_module_with_a_broker_takes_no_options_of_a_queue():
    """So the remedy says what such a module needs. Tiers of one's own are always those of a broker."""
    own = RedisBroker(URL, tiers=OWN, namespace="shop").keys
    assert worker_remedy(own) == "streamq worker app.tasks (app.tasks is a module whose broker has these tiers)"
    shop = RedisBroker(URL, namespace="shop", group="mail").keys
    assert worker_remedy(shop).startswith("streamq worker app.tasks --namespace shop --group mail (without --namespace")
    assert worker_remedy(RedisBroker(URL).keys) == "streamq worker app.tasks"
    home = bring_home(own, "shop:standard")
    assert home.startswith("streamq worker app.tasks --queue shop:standard if app.tasks has no broker; ")
    assert 'Tier("standard", threshold=2_000_000_000)' in home
    assert 'Tier("other", stream="mail:a,b", threshold=' in bring_home(own, "mail:a,b")


def test_quotes_do_not_end_a_command():
    """A command that has quotes stands between others."""
    assert in_quotes("streamq doctor") == "'streamq doctor'"
    assert in_quotes(streamq_command(RedisBroker(URL, namespace="{a}").keys, "doctor")) == (
        "\"streamq doctor --namespace '{a}'\""
    )


# --- every text ------------------------------------------------------------------------------------

COMMAND = re.compile(r"streamq (doctor|dlq|acl|worker|enqueue|cancel|schedules) +(--\w|app\b|ls\b|rm\b|replay|purge)")
ALLOWED = {  # an error that may know no keys, a pattern that finds remedies, a word for a table of docs
    "streamq/errors/__init__.py": 1,
    "streamq/queue/missing_right.py": 1,
    "streamq/wire/bounds.py": 1,
}


def test_no_text_has_a_command_without_the_options_of_its_queue():
    """Whoever writes one makes it by `wire/command_line.py`."""
    found = {}
    for path in (ROOT / "streamq").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if count := sum(COMMAND.search(text.value) is not None for text in texts if id(text) not in docs):
            found[str(path.relative_to(ROOT))] = count
    found = {place: count for place, count in found.items() if not place.startswith("streamq/cli/demo/")}
    assert found == ALLOWED
