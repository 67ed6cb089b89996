"""What the pages say of the code is true: tables, maps, links."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest

from streamq.errors import ProcessDiedError
from streamq.tasks.decorator import task
from streamq.tasks.options import OPTION_NAMES
from streamq.tasks.outcome import Reason
from streamq.wire.counters import COUNTS
from streamq.wire.dead_letter_fields import Failure, dead_letter_fields
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys, TierKeys
from streamq.wire.message import Message
from streamq.wire.signing import SIG
from streamq.wire.tiers import Tier
from streamq.worker import Worker
from tests.docs.pages import PAGES, ROOT, table_under

WIRE = ROOT / "docs" / "wire-format.md"


def column(rows: list[list[str]]) -> set[str]:
    """Return the names in the first column, several in one cell apart."""
    return {name.strip() for row in rows for name in row[0].split(",")}


_OTHERS = {"retry_member", "accepted_workflow"}  # no key of its own, and another form of one


def test_keys() -> None:
    """The table of keys has every key that wire/keys.py can make, and no other."""
    keys = Keys.of("<ns>", "<group>", [Tier("tier", stream="<stream>")])
    made = {getattr(keys.tiers[0], name) for name in TierKeys.__dataclass_fields__}
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            made.add(getattr(keys, name))
        elif (
            inspect.isfunction(member)
            and not name.startswith("_")
            and name not in {"retry_member", "accepted_workflow"}
        ):
            (parameter,) = list(inspect.signature(member).parameters)[1:]
            made.add(member(keys, f"<{parameter}>") if parameter != "seconds" else member(keys, 70.0)[:-1] + "<window>")
    assert column(table_under(WIRE, "## Keys")) == made


def test_fields_of_an_entry() -> None:
    """The table has every field that is read or written, and no other."""
    source = (ROOT / "streamq" / "wire" / "delivery.py").read_text()
    read = set(re.findall(r'(?:get|_integer|_seconds|_ms)\(b"(\w+)"', source))
    every: dict[str, Any] = {
        "task": "t", "args": [1], "kwargs": {"a": 1}, "task_id": "x", "priority": 1, "retries": 1, "timeout": 1.0,
        "result_ttl": 1.0, "expires": 1.0, "enqueued_at": 1.0, "headers": {"a": 1}, "dedup": "k", "dedup_until": "done",
        "dedup_ttl": 1.0,
    }  # fmt: skip
    assert set(every) == set(Message.__dataclass_fields__)
    written = set(map(str, Message(**every).fields()[::2]))
    assert column(table_under(WIRE, "## Fields of an entry")) == read | written | {SIG.decode()}


def test_fields_of_a_dead_letter() -> None:
    """The table has every field that a dead letter can have, and no other."""
    full = ["task", "t", "priority", "1", "retries", "1", "timeout", "1", "result_ttl", "1", "headers", "{}"]
    full += [
        "dedup",
        "k",
        "dedup_until",
        "done",
        "dedup_ttl",
        "1",
        "group",
        "g",
        "then",
        '[{"send":"s","fields":["task","t","id","i"]}]',
        "workflow",
        "w.1",
    ]
    names: set[str] = set()
    for flat in (full, ["task", "t", "args", "nonsense"], ["task", "t", "args", "x" * 100_000]):
        delivery = Delivery(0, "tier", b"1-0", [part.encode() for part in flat], crashed_workers=("w",))
        failure = Failure("E", "e")
        fields = dead_letter_fields(
            delivery, reason="r", failure=failure, worker="w", stream="s", died_at=1.0, group="g", refused="x"
        )
        names |= {name.decode() if isinstance(name, bytes) else name for name in fields[::2]}
    shown = {re.sub(r"^raw\..*", "raw.<field>", name) for name in names}
    rows = table_under(WIRE, "## Fields of a dead letter")
    assert column(rows) == shown | {SIG.decode()}
    (reasons,) = [row[2] for row in rows if row[0] == "reason"]
    assert set(re.findall(r"\w+", reasons)) - {"or"} == {str(reason) for reason in Reason}


def test_counters() -> None:
    """The table has every counter."""
    assert column(table_under(WIRE, "## Counters")) == {*COUNTS, "l<bucket>", "w<bucket>"}


def test_options() -> None:
    """The tables of options have every option of enqueue, of @task and of Worker."""
    tasks = ROOT / "docs" / "tasks.md"
    assert column(table_under(tasks, "## Sending")) == OPTION_NAMES
    made = inspect.signature(sys.modules[task.__module__]._make).parameters
    assert column(table_under(tasks, "# Tasks")) == set(made) - {"function"}
    given = set(inspect.signature(Worker).parameters) - {"broker", "tasks"}
    assert column(table_under(ROOT / "docs" / "worker.md", "## In your own program")) == given


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page) -> None:
    """What a page links to, or names as a test, is there; headings included."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
    for test in re.findall(r"`(tests/[\w/]+(?:\.py)?)`", text):
        assert (ROOT / test).exists(), test


def test_readme_links_every_page() -> None:
    """A page that nobody links is not found."""
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_promises() -> None:
    """Each promise has its row, and each file in a row names that promise."""
    page = ROOT / "docs" / "guarantees.md"
    rows = {row[0]: row[1] for row in table_under(page, "## What is tested where")}
    promised = {number for heading in re.findall(r"^## (P\d.*?):", page.read_text(), re.MULTILINE)
                for number in re.findall(r"P\d+", heading)}  # fmt: skip
    assert set(rows) == promised
    for number, files in rows.items():
        for name in re.findall(r"tests/[\w/]+\.py", files):
            assert re.search(rf"\b{number}\b", (ROOT / name).read_text()), f"{name} does not name {number}"


def test_scenarios() -> None:
    """The table of guarantees.md names every scenario of `python -m tests.faults`, and no other; its tests exist."""
    from tests.faults import registry

    registry.load()
    text = (ROOT / "docs" / "guarantees.md").read_text()
    rows = re.findall(r"^\| P\d+ \|.*$", text, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
    assert {word for word in named if "/" not in word} == set(registry.SCENARIOS)
    assert [word for word in sorted(named) if "/" in word and not (ROOT / word).exists()] == []


def test_the_error_of_a_process_that_died_is_quoted_as_it_is() -> None:
    """Whoever meets it searches the pages for it."""
    page = (ROOT / "docs" / "tasks.md").read_text()
    assert f'"{ProcessDiedError("primes", -9)}"' in page
