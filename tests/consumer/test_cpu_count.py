"""The number of usable cores: the affinity mask, limited by the quotas of control groups."""

from __future__ import annotations

import os
from unittest.mock import patch

import click
import pytest

from streamq.cli.options import processes
from streamq.consumer.cpu_count import usable_cores


@pytest.fixture
def eight_cores():
    """A machine with eight cores. The process may use all of them."""
    with (
        patch.object(os, "sched_getaffinity", lambda _: set(range(8)), create=True),
        patch.object(os, "process_cpu_count", lambda: 8, create=True),
    ):
        yield


@pytest.fixture
def cores(tmp_path, eight_cores):
    """Return the number of usable cores for this control group and these limits."""

    def asked(group: str, limits: dict[str, str]) -> int:
        own = tmp_path / "cgroup"
        own.write_text(f"1:name=systemd:/other\n0::{group}\n")
        for folder, limit in limits.items():
            (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / folder / "cpu.max").write_text(limit + "\n")
        return usable_cores(own, tmp_path / "groups")

    return asked


def test_without_a_quota_the_affinity_counts(cores):
    """No control group limits the cores."""
    assert cores("/", {}) == 8
    assert cores("/a/b", {"a/b": "max 100000", "a": "max 100000"}) == 8


@pytest.mark.parametrize(
    ("limit", "expected"), [("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_quota_is_rounded_down_to_whole_cores(cores, limit, expected):
    """In a container the limit is in the outermost visible group. The result is at least one."""
    assert cores("/", {".": limit}) == expected


def test_the_smallest_quota_of_all_parent_groups_counts(cores):
    """The quota of a slice may be smaller than that of its unit."""
    assert cores("/slice/unit", {"slice/unit": "600000 100000", "slice": "400000 100000"}) == 4


def test_unreadable_control_groups_are_ignored(tmp_path, eight_cores):
    """Another system, control groups version 1, or a kernel without them."""
    assert usable_cores(tmp_path / "nothing", tmp_path) == 8
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/docker/1\n")
    assert usable_cores(tmp_path / "cgroup", tmp_path) == 8


def test_auto_means_one_process_for_each_usable_core():
    """--processes auto."""
    with patch("streamq.consumer.cpu_count.usable_cores", lambda: 5):
        assert processes("auto") == 5
    assert processes("3") == 3


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_an_invalid_number_of_processes(text):
    """It is refused, and the error shows valid values."""
    with pytest.raises(click.BadParameter, match="write 1 to 1,024, or auto"):
        processes(text)
