"""docs/bounds.md has the table of `streamq/wire/bounds.py`, row by row."""

from __future__ import annotations

from streamq.wire.bounds import TABLE
from tests.docs.pages import ROOT, table_under


def test_the_page_has_every_bound() -> None:
    """Name, unit, lowest, highest, why; in the same order."""
    rows = table_under(ROOT / "docs" / "bounds.md", "## The table")
    table = [[one.name, one.unit, f"{one.lowest:,.15g}", f"{one.highest:,.15g}", one.why] for one in TABLE]
    assert rows == table


def test_a_name_has_one_bound() -> None:
    """So that the table can be searched by name."""
    names = [one.name for one in TABLE]
    assert len(set(names)) == len(names)
