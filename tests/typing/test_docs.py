"""mypy and pyright accept the programs of the docs that send tasks, from threads too, and the annotated tests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT, blocks_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(330)]

STRICT = ("EndedTask",)  # in the programs that show types, everything has one
LENIENT = ("from_thread", "portal.call", "gather(")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Write the programs to files: those that show types to `strict/`, the others to `lenient/`. Return the folder."""
    folder = tmp_path_factory.mktemp("programs")
    for kind, words in (("strict", STRICT), ("lenient", LENIENT)):
        (folder / kind).mkdir()
        for block in (block for page in PAGES for block in blocks_of(page)):
            if block.language == "python" and not block.mark and any(word in block.code for word in words):
                (folder / kind / f"{block.page.stem.replace('-', '_')}_{block.line}.py").write_text(block.code)
        assert [*(folder / kind).iterdir()]
    return folder


def run(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("kind", "options"), [("strict", ["--strict"]), ("lenient", ["--check-untyped-defs"])])
def test_mypy(programs, kind, options):
    """Under `--strict`, where types are shown."""
    files = [*map(str, (programs / kind).iterdir())]
    run("mypy", "--config-file=", "--python-version=3.11", "--cache-dir", str(programs / "cache"), *options, *files)


@pytest.mark.parametrize("kind", ["strict", "lenient"])
def test_pyright(programs, kind):
    """In standard mode."""
    config = programs / f"{kind}.json"
    config.write_text(
        json.dumps({
            "include": [kind], "extraPaths": [str(ROOT)], "pythonVersion": "3.11", "typeCheckingMode": "standard",
        })
    )  # fmt: skip
    run("pyright", "--pythonpath", sys.executable, "-p", str(config))
