"""The same seed is the same history, byte for byte: without that no line would replay a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.simulation.histories import play_seed

pytestmark = pytest.mark.slow

SEEDS = range(500, 512)
ROOT = Path(__file__).parents[2]
_PRINT_DIGESTS = """
import sys, zlib
from tests.simulation.histories import play_seed
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    print(seed, zlib.crc32(play_seed(seed).log))
"""


def digests(hash_seed: str) -> list[str]:
    """Return what another process makes of the seeds."""
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_DIGESTS, str(SEEDS.start), str(SEEDS.stop)],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=True, capture_output=True, text=True,
        timeout=110,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_another_process_plays_the_same_histories() -> None:
    """The log, and each command that reached the server, at its time, over its connection."""
    here = [f"{seed} {zlib.crc32(play_seed(seed).log)}" for seed in SEEDS]
    assert digests("12345") == here


def test_what_was_played_before_does_not_matter() -> None:
    """One server serves all histories of a process, and forgets each."""
    first = play_seed(SEEDS.start).log
    for seed in (3, 4, 5):
        play_seed(seed)
    assert play_seed(SEEDS.start).log == first
