"""Every fenced block of the documentation is run, or compared with what it describes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click
import hiredis
import pytest
from click.testing import CliRunner

from streamq.embedded import MemoryServer
from tests.docs.pages import BLOCKS, PAGES, ROOT, Block, Program, programs
from tests.servers import RealServer, fresh_server

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = (  # the README's, as they are
    "python3 -m venv .venv && .venv/bin/pip install -c tests/constraints.txt '.[demo]' && .venv/bin/streamq demo",
    "python3 -m venv .venv && .venv/bin/pip install -c tests/constraints.txt -e '.[dev]' && .venv/bin/pytest",
)
MARKS = {
    "python": ("", "continues"),
    "console": ("",),
    "json": ("",),
    "toml": ("",),
    "text": ("output", "illustration", "help"),
    "lua": ("illustration",),
    "mermaid": ("", "folders"),  # tests/docs/test_architecture.py
}


def kind(block: Block) -> str:
    """Return a block's mark without what it is about."""
    return block.mark.partition(":")[0] if block.mark else ""


def test_no_block_is_passed_over() -> None:
    """A block of an unknown language, or one that nothing checks, is an error."""
    unknown = [
        f"{block.place}: ```{block.language} marked {block.mark!r}"
        for block in BLOCKS
        if kind(block) not in MARKS.get(block.language, ())
    ]
    assert not unknown


# What changes the logging or the settings of its whole process, for the tests after it, too.
GLOBAL = {"logging.config", "structlog", "sentry_sdk", "django"}
ON_BACKEND = """
import anyio, runpy
run = anyio.run
anyio.run = lambda function, *args: run(function, *args, backend={backend!r})
runpy.run_path({path!r}, run_name="__main__")
"""

# --- python ------------------------------------------------------------------------------------

# The others are tests, which pytest runs: test_testing_your_tasks.py.
PROGRAMS = [program for program in programs() if "def test_" not in program.code]
# The quick half has those that show what other packages do, whose versions change.
QUICK = {"README.md", "docs/exporters.md", "docs/schedules.md", "docs/tasks.md"}


def slow(place: str, *, but: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of what is run for this place of the documentation: slow, but for some."""
    return [] if but or place.partition(":")[0] in QUICK else [pytest.mark.slow]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "program", [pytest.param(one, id=one.place, marks=slow(one.place, but=False)) for one in PROGRAMS]
)
def test_python(
    program: Program, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """A program runs under both backends and prints what the page says."""
    if "DATABASE_URL" in program.code:
        monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("postgres").url)
    run = anyio.run

    def on_backend(function: Any, *arguments: Any, **options: Any) -> Any:
        chosen = {} if "backend_options" in options else {"backend": backend}  # which fit one backend alone
        return run(function, *arguments, **options | chosen)

    path = tmp_path / "program.py"
    path.write_text(program.code)
    if GLOBAL & set(re.findall(r"^import ([\w.]+)", program.code, re.MULTILINE)):
        alone = ON_BACKEND.format(backend=backend, path=str(path))
        subprocess.run([sys.executable, "-W", "error", "-c", alone], check=True, timeout=60, cwd=tmp_path)
        assert program.output is None or capfd.readouterr().out == program.output
        return
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(anyio, "run", on_backend)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MemoryServer, "_named", {})  # as in a process of its own

    exec(compile(program.code, program.place, "exec"), main.__dict__)

    if program.output is not None:
        assert capfd.readouterr().out == program.output


# --- console -----------------------------------------------------------------------------------

LINES = [
    (block.page, f"{block.page.relative_to(ROOT)}:{block.line + number}", line)
    for block in BLOCKS
    if block.language == "console"
    for number, line in enumerate(block.code.splitlines(), 1)
    if line and not line.startswith("#")
]


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=place, marks=slow(place, but="python" not in line)) for _, place, line in LINES]
)
def test_console(line: str) -> None:
    """A line's command exists and takes these arguments. Those of redis-cli are run below."""
    if line in COMMANDS:
        return
    words = shlex.split(re.sub(r"^[A-Z]+=\$\((.*)\)$", r"\1", line))  # NAME=$(command)
    match words:
        case ["streamq", *arguments]:
            parse(arguments)
        case ["redis-cli" | "export" | "echo", *_]:
            pass  # test_security.py gives the latter two to a shell
        case ["python", "-X", "importtime", "-c", code]:
            # Without -X: its report goes to standard error, where CI would show it.
            subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
        case ["python", "-m", module, *arguments]:
            check_module(module, arguments)
        case ["pytest", *arguments]:
            check_marks(arguments)
        case ["python", script]:
            assert (ROOT / script).is_file()
        case ["pip", "install", *wanted]:
            for what in wanted:
                check_extras(what)
        case _:
            pytest.fail(f"nothing checks {line!r}")


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `streamq`, and run nothing."""
    from streamq.cli.entry import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="streamq", **cli.context_settings)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"there is no {context.command_path} {name}"
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context, **command.context_settings)
    command.make_context(command.name, arguments, parent=context)


def check_module(module: str, arguments: list[str]) -> None:
    """The module can be run with these arguments, none of which runs anything here."""
    asked = [sys.executable, "-m", module, *arguments, "--help"]
    ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for option in (word for word in arguments if word.startswith("--")):
        assert option in ended.stdout


def check_marks(arguments: list[str]) -> None:
    """What `-m` chooses is a mark of ours."""
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    match arguments:
        case []:
            pass
        case ["-m", mark]:
            assert mark in {declared.partition(":")[0] for declared in marks}
        case _:
            pytest.fail(f"nothing checks {arguments}")


def check_extras(requirement: str) -> None:
    """Each extra in `streamq[a,b]` is one of the project's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.fullmatch(r"(?:streamq|\.)(?:\[([\w,]+)\])?", requirement)
    assert wanted is not None
    assert set((wanted[1] or "demo").split(",")) <= set(project["optional-dependencies"])


@pytest.fixture(scope="module")
def by_hand() -> Iterator[RealServer]:
    with fresh_server("valkey") as server:
        yield server


BY_HAND = [page for page in PAGES if any(where == page and line.startswith("redis-cli") for where, _, line in LINES)]
HELP = [block for block in BLOCKS if kind(block) == "help"]


@pytest.mark.parametrize("page", BY_HAND, ids=lambda page: page.name)
def test_redis_cli(page: Path, by_hand: RealServer) -> None:
    """The lines of redis-cli of a page, one after the other, are understood by a real server."""
    by_hand.flush()
    by_hand.command("XGROUP", "CREATE", "queue:standard", "workers", "0", "MKSTREAM")
    for where, place, line in LINES:
        program, *arguments = shlex.split(line)
        if where == page and program == "redis-cli":
            reply = tailed(by_hand, arguments) if "BLOCK" in arguments else by_hand.command(*arguments)
            assert not isinstance(reply, hiredis.ReplyError), f"{place}: {reply}"


def tailed(server: RealServer, arguments: list[str]) -> Any:
    """Carry out a command that blocks for ever; something is written as soon as it waits."""
    stream = arguments[arguments.index("STREAMS") + 1]
    replies: list[Any] = []
    reader = threading.Thread(target=lambda: replies.append(server.command(*arguments)), daemon=True)
    reader.start()
    deadline = time.monotonic() + 10
    while reader.is_alive() and time.monotonic() < deadline:
        if b"blocked_clients:1" in server.command("INFO", "clients"):
            server.command("XADD", stream, "*", "task", "send")
        reader.join(0.01)
    assert replies
    assert replies[0]
    return replies[0]


# --- text, and data ------------------------------------------------------------------------------


NAMED = re.compile(r"(?<![\w-])--?[a-z][\w-]*|STREAMQ_\w+")  # options, and their environment variables


def command_of(command: click.Command, path: list[str]) -> click.Command:
    """Return the command at a path: `dlq ls`."""
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def said(command: click.Command) -> Iterator[str]:
    """Yield what a command says of itself in words of its own."""
    yield (command.help or "").replace("\b", "")  # which has click keep the lines as they are
    yield from command.commands if isinstance(command, click.Group) else ()
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_eager:  # --help and --version have click's words
            yield option.help or ""
            yield str(option.default) if option.show_default is True else ""


@pytest.mark.parametrize("block", HELP, ids=lambda block: block.mark)
def test_help(block: Block) -> None:
    """What a page shows as help is what the command says. STREAMQ_WRITE_HELP=1 writes it.

    That is: the same options and variables in the same order, and the words that are ours. How they are laid out and
    what is said of types and ranges is click's, and differs from one version to the next.
    """
    from streamq.cli.entry import cli

    arguments = block.mark.removeprefix("help").removeprefix(":").split()
    # 100 columns, and no colour, whatever terminal runs the tests.
    result = CliRunner().invoke(
        cli, [*arguments, "--help"], prog_name="streamq", terminal_width=100, max_content_width=100
    )
    assert result.exit_code == 0
    if os.environ.get("STREAMQ_WRITE_HELP"):
        fences = f"<!-- {block.mark} -->\n```text\n"
        text = block.page.read_text()
        block.page.write_text(text.replace(f"{fences}{block.code}```", f"{fences}{result.output}```"))
    else:
        assert NAMED.findall(result.output) == NAMED.findall(block.code)
        shown = " ".join(block.code.split())
        for words in said(command_of(cli, arguments)):
            assert " ".join(words.split()) in shown


def test_every_command_has_its_help_on_a_page() -> None:
    """A command without a page is an error."""
    from streamq.cli.entry import cli

    def paths(command: click.Command, path: str) -> Iterator[str]:
        yield path
        for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
            yield from paths(inner, f"{path} {name}".strip())

    assert sorted(block.mark.removeprefix("help").removeprefix(":").strip() for block in HELP) == sorted(paths(cli, ""))


def test_data() -> None:
    """JSON and TOML can be read."""
    for block in BLOCKS:
        if block.language in ("json", "toml"):
            {"json": json.loads, "toml": tomllib.loads}[block.language](block.code)
