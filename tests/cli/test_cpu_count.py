"""How many cores may be used: what the scheduler allows, and what the control groups pay for."""

from __future__ import annotations

import os
from unittest.mock import patch

import click
import pytest

from streamq.cli.cpu_count import usable_cores
from streamq.cli.options import processes


@pytest.fixture
def eight_cores():
    """A machine of eight cores, all of them allowed."""
    with (
        patch.object(os, "sched_getaffinity", lambda _: set(range(8)), create=True),
        patch.object(os, "process_cpu_count", lambda: 8, create=True),
    ):
        yield


@pytest.fixture
def cores(tmp_path, eight_cores):
    """Return how many cores may be used, by the group of this process and the limits of groups."""

    def asked(group: str, limits: dict[str, str]) -> int:
        own = tmp_path / "cgroup"
        own.write_text(f"1:name=systemd:/other\n0::{group}\n")
        for folder, limit in limits.items():
            (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / folder / "cpu.max").write_text(limit + "\n")
        return usable_cores(own, tmp_path / "groups")

    return asked


def test_without_a_quota_all_that_are_allowed(cores):
    """The affinity alone counts."""
    assert cores("/", {}) == 8
    assert cores("/a/b", {"a/b": "max 100000", "a": "max 100000"}) == 8


@pytest.mark.parametrize(
    ("limit", "expected"), [("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_quota_is_what_it_pays_for_in_whole(cores, limit, expected):
    """In a container the limit stands in the outermost group that can be seen. Never less than one."""
    assert cores("/", {".": limit}) == expected


def test_the_least_quota_of_all_groups_around_counts(cores):
    """Of a unit in a slice, the slice's may be the tighter one."""
    assert cores("/slice/unit", {"slice/unit": "600000 100000", "slice": "400000 100000"}) == 4


def test_control_groups_that_cannot_be_read_say_nothing(tmp_path, eight_cores):
    """Another system, version 1, a kernel without them."""
    assert usable_cores(tmp_path / "nothing", tmp_path) == 8
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/docker/1\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path) == 8


def test_auto_means_one_process_for_each_usable_core():
    """--processes auto."""
    with patch("streamq.cli.cpu_count.usable_cores", lambda: 5):
        assert processes("auto") == 5
    assert processes("3") == 3


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_what_is_no_number_of_processes(text):
    """It is refused, with what to write."""
    with pytest.raises(click.BadParameter, match="write 1 or more, or auto"):
        processes(text)
