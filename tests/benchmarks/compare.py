"""The plain path of this checkout against that of another revision, run by turns against one server.

    python -m tests.benchmarks.compare REVISION --rounds 7 --tasks 20000 --backend asyncio
    python -m tests.benchmarks.compare REVISION --what kept

`kept` keeps each result; `timed` gives each task a timeout. Prints the median of each figure for both, and the ratio.
The server is started here; machines are noisy, so only the ratio of one such run says anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median

from tests.benchmarks.plain import WHAT
from tests.servers import RealServer

ROOT = Path(__file__).parent.parent.parent
RUN = Path(__file__).with_name("plain.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--server", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--what", default="nothing", choices=WHAT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, closing(RealServer(given.server)) as server:
        other = Path(folder) / "other"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(other), given.revision], check=True, capture_output=True)
        try:
            runs: dict[str, list[dict[str, float]]] = {"then": [], "now": []}
            for _ in range(given.rounds):
                for name, tree in (("then", other), ("now", ROOT)):
                    server.flush()
                    runs[name].append(_run(tree, server.url, given))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True, capture_output=True)
    print(f"{'':20}{given.revision[:12]:>14}{'now':>14}{'ratio':>9}")
    for figure in runs["now"][0]:
        then, now = (median(run[figure] for run in runs[name]) for name in ("then", "now"))
        print(f"{figure:20}{then:14.3f}{now:14.3f}{now / then:9.3f}")


def _run(tree: Path, url: str, given: argparse.Namespace) -> dict[str, float]:
    """Run once with the package of a tree."""
    command = [sys.executable, str(RUN), url, "--tasks", str(given.tasks), "--backend", given.backend]
    command += ["--what", given.what]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True, timeout=300)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
