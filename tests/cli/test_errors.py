"""Usage errors: one line with the remedy, exit code 2, no traceback, no password."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamq.cli.entry import _run
from streamq.cli.usage_errors import CommandLineError, from_streamq_error
from streamq.doctor.examine import _server_unusable
from streamq.errors import BrokerError, BrokerUnavailableError
from tests.servers import fresh_server


@pytest.fixture
def modules(app):
    """Modules with different errors."""
    (app / "missing_inside.py").write_text("import os\n\nimport no_such_thing\n")
    (app / "syntax.py").write_text("x = 1\ndef f(:\n")
    (app / "raises.py").write_text("def f():\n    raise KeyError('boom')\nf()\n")
    (app / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (app / "no_tasks.py").write_text("x = 1\n")
    (app / "twice.py").write_text(
        "from streamq import task\nasync def one(): pass\nasync def two(): pass\n"
        "a = task(name='same')(one)\nb = task(name='same')(two)\n"
    )
    (app / "generator.py").write_text("from app import send\nasync def lifespan(worker):\n    yield\n")
    for name, line in MEANT.items():
        (app / f"{name}.py").write_text(f"from app import send\n{line}\n")
    (app / "option.py").write_text("from streamq import task\n\n@task(retires=3)\nasync def f(): ...\n")
    (app / "minute.py").write_text("from streamq import task\n\n@task(cron='61 * * * *')\nasync def f(): ...\n")
    (app / "bad-name.py").write_text("")
    (app / "sub").mkdir()
    (app / "sub" / "json.py").write_text("from streamq import task\n@task\nasync def f(): pass\n")


MEANT = {
    "chain": "middleware = [print]", "function": "async def middleware(context, call_next): ...",
    "url": "broker = 'redis://'", "number": "lifespan = 1", "coroutine": "async def lifespan(worker): ...",
    "simple": "def lifespan(worker):\n    yield",
}  # fmt: skip
OTHER = "; or give it another name, also on import (as ...)"
NOWHERE = "redis://:hunter2@localhost:1"
# fmt: off
WRONG = {
    "no module": (["worker", "nope"], ["no module 'nope' here", "check the name"]),
    "options first": (["--app", "shop", "enqueue", "send"], ["after the command: write streamq COMMAND --app ..."]),
    "options of a group": (["dlq", "--reason", "expired", "ls"], ["after the command: write streamq dlq COMMAND --re"]),
    "no submodule": (["worker", "app.nope"], ["no module 'app.nope'", "check the name"]),
    "import inside": (["worker", "missing_inside"], [
        "no_such_thing", "(missing_inside.py:3)", "python -c",
    ]),
    "syntax": (["worker", "syntax"], ["SyntaxError", "(syntax.py:2)"]),
    "raises": (["worker", "raises"], ["KeyError: 'boom'", "(raises.py:2)"]),
    "exits": (["worker", "exits"], ["calls exit on import", "(exits.py:2)"]),
    "no tasks": (["worker", "no_tasks"], ["no_tasks has no tasks", "@task"]),
    "two of a name": (["worker", "twice"], ["two tasks are named 'same'", "twice.one and twice.two", "name="]),
    "no attribute": (["worker", "app:nope"], ["app has no 'nope'", "broken, held, send, stuck"]),
    "no task": (["worker", "app:threading.Event"], ["not a task", "@task"]),
    "no file": (["worker", "./nope.py"], ["no such file"]),
    "file name": (["worker", "bad-name.py"], ["rename the file"]),
    "hidden file": (["worker", "sub/json.py"], ["is shadowed by", "rename the file"]),
    "lifespan": (["worker", "generator"], ["async generator", "@contextlib.asynccontextmanager"]),
    "middleware in a list": (["worker", "chain"], [
        "chain.middleware is of type list: give a MiddlewareChain, as in MiddlewareChain(first, second)", OTHER,
    ]),
    "middleware alone": (["worker", "function"], ["function.middleware is of type function: give a Middle", OTHER]),
    "broker by its url": (["worker", "url"], ["url.broker is of type str: give a RedisBroker", OTHER]),
    "lifespan of a wrong type": (["worker", "number"], ["number.lifespan is of type int: give a function", OTHER]),
    "lifespan without yield": (["worker", "coroutine"], ["lifespan is a coroutine function", "one 'yield'", OTHER]),
    "lifespan not async": (["worker", "simple"], ["lifespan is a generator function: write 'async def'", OTHER]),
    "option of a task": (["worker", "option"], ["@task has no option retires", "(option.py:3)"]),
    "schedule of a task": (["worker", "minute"], ["Bad minute", "(minute.py:3)"]),
    "no server": (["worker", "app", "--url", NOWHERE], ["no connection to localhost:1", "--url or STREAMQ_URL"]),
    "no server, supervised": (["worker", "app", "-p", "2", "--url", NOWHERE], ["no connection to localhost:1"]),
    "enqueue, no server": (["enqueue", "send", "--url", NOWHERE], ["no connection to localhost:1", "--url"]),
    "dlq, no server": (["dlq", "ls", "--url", NOWHERE], ["no connection to localhost:1", "--url"]),
    "tail, no server": (["dlq", "tail", "--url", NOWHERE], ["no connection to localhost:1", "--url"]),
    "demo, no server": (["demo", "--limit", "10", "--url", NOWHERE], ["no connection to localhost:1", "--url"]),
    "scheme": (["worker", "app", "--url", "http://x:hunter2@y"], ["unknown scheme; use one of", "redis://", "embedded://"]),
    "port": (["enqueue", "send", "--url", "redis://:hunter2@y:port"], ["cannot be used", "host:port"]),
    "weight": (["worker", "app", "--tiers", "critical=0"], ["'critical=0' is out of bounds", "1 to 10,000"]),
    "tier": (["worker", "app", "--tiers", "express=1"], ["no tier express", "critical, standard, bulk"]),
    "twice a tier": (["worker", "app", "--tiers", "bulk,bulk"], ["named twice"]),
    "queue and tiers": (["worker", "app", "--queue", "q:a", "--tiers", "bulk"], ["--queue and --tiers"]),
    "memory and processes": (["worker", "app", "-p", "2", "--url", "memory://"], ["its own server"]),
    "trio and uvloop": (["worker", "app", "--backend", "trio", "--uvloop"], ["--uvloop and --backend trio"]),
    # What is wrong with these three click says, in words of its own; the help to look at is ours.
    "option": (["worker", "app", "--concurency", "3"], ["--concurency", "(see 'streamq worker --help')"]),
    "command": (["werker"], ["werker", "(see 'streamq --help')"]),
    "value": (["worker", "app", "-c", "many"], ["many", "(see 'streamq worker --help')"]),
    "module left out": (["worker"], ["'MODULE...'", "; write streamq worker [OPTIONS] MODULE... (see 'streamq w"]),
    "no role": (["acl"], ["Missing option '--role'", "producer, worker", "(see 'streamq acl --help')"]),
    "task left out": (["enqueue"], ["Missing argument 'NAME'; write streamq enqueue [OPTIONS] NAME [ARGS]..."]),
    "no id to cancel": (["cancel"], ["Missing argument 'ID...'; write streamq cancel [OPTIONS] ID..."]),
    "no id to show": (["dlq", "show"], ["Missing argument 'ID'; write streamq dlq show [OPTIONS] ID"]),
    "no id to remove": (["dlq", "rm"], ["Missing argument 'ID...'; write streamq dlq rm [OPTIONS] ID..."]),
    "no schedule": (["schedules", "rm"], ["Missing argument 'NAME...'; write streamq schedules rm [OPTIONS] NAME..."]),
    "duration": (["worker", "app", "--grace", "soon"], ["'soon' is not a duration", "ms, s, m, h or d"]),
    "dashed argument": (["enqueue", "send", "-5"], ["no such option: -5; write -- before arguments"]),
    "kwargs": (["enqueue", "send", "--kwargs", "[1]"], ["not a JSON object", "-k"]),
    "pair": (["enqueue", "send", "-k", "to"], ["write -k key=value"]),
    "task name": (["enqueue", "a b"], ["name='a b' cannot be used", "no white space"]),
    "delay and at": (["enqueue", "send", "--delay", "5", "--at", "2100-01-01"], ["give one of them"]),
    "time": (["enqueue", "send", "--at", "noon"], ["'noon' is not a time", "Unix seconds"]),
    "priority": (["enqueue", "send", "--priority", "huge"], ["'huge' is not a priority", "critical"]),
    "which to replay": (["dlq", "replay"], ["no dead letters chosen", "--all"]),
    "replay all and one": (["dlq", "replay", "--all", "1-0"], ["task ids together with --all", "one or the other"]),
    "since": (["dlq", "tail", "--since", "foo"], ["'foo' is no point to start at", "10m (ago)", "an entry id"]),
    "user of rules": (["acl", "--role", "worker", "--user", "a b"], ["--user 'a b'", "without white space"]),
    "purge unasked": (["dlq", "purge"], ["--yes"]),
    "enqueue in memory": (["enqueue", "send", "--url", "memory://"], ["ends with it", "embedded:///path/to/data"]),
    "dlq in memory": (["dlq", "ls", "--url", "memory://x"], ["ends with it", "embedded:///path/to/data"]),
    "schedules in memory": (["schedules", "ls", "--url", "memory://"], ["ends with it"]),
    "cancel in memory": (["cancel", "t-1", "--url", "memory://"], ["ends with it"]),
    "empty URL": (["enqueue", "send", "--url", ""], ["--url is empty", "redis://localhost:6379"]),
    "kill in memory": (["demo", "--kill-worker", "--url", "memory://"], ["--kill-worker and memory://"]),
}
# fmt: on


def one_line(program) -> str:
    """Return the only line that a command printed before it exited with 2."""
    assert program.ended() == 2, program.output
    assert len(program.seen) == 1, program.output
    assert program.seen[0].startswith("streamq: error: ")
    assert "hunter2" not in program.output
    return program.seen[0]


@pytest.mark.slow
def test_each_is_one_line_with_the_remedy(start, modules):
    """Each mistake is reported in one line. They run together, because starting Python is slow."""
    for names in (list(WRONG)[at : at + 6] for at in range(0, len(WRONG), 6)):
        programs = {name: start(*WRONG[name][0]) for name in names}
        for name, program in programs.items():
            line = one_line(program)
            for part in WRONG[name][1]:
                assert part in line, f"{name}: {line}"


def test_a_variable_is_enough(monkeypatch, capsys):
    """An option that must be given may come from its variable alone."""
    monkeypatch.setenv("STREAMQ_ACL_ROLES", "producer")
    assert _run(["acl"]) == 0
    assert "ACL SETUSER" in capsys.readouterr().out


@pytest.mark.parametrize("group", [[], ["dlq"], ["schedules"]])
def test_a_group_without_a_command_prints_its_commands(group, capsys):
    """Its help, on stderr: the commands are what is missing. The exit code is that of a usage error."""
    assert _run(group) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Commands:" in printed.err


@pytest.mark.slow
def test_an_empty_variable_of_the_url_is_no_localhost(start):
    """A URL that failed to be set, in a unit file say, must not send tasks to another server."""
    for arguments in (["enqueue", "send"], ["dlq", "ls"], ["doctor"], ["worker", "app"]):
        program = start(*arguments, env={"STREAMQ_URL": ""})
        assert "STREAMQ_URL is empty: give the URL of a server" in one_line(program)


def test_a_wrong_value_of_a_variable_names_the_variable(start):
    """Nothing on the command line shows where the value comes from."""
    program = start("worker", "app", env={"STREAMQ_WORKER_CONCURRENCY": "abc"})
    assert "'abc' is not" in (line := one_line(program))
    assert "from the variable STREAMQ_WORKER_CONCURRENCY" in line


@pytest.mark.slow
def test_rules_for_tiers_of_any_name(streamq):
    """With weights, as a worker gets them, or without."""
    code, line = streamq("acl", "--role", "worker", "--tiers", "fast,slow")
    assert code == 0
    assert {"~queue:fast", "~queue:slow"} <= set(line.split())
    assert streamq("acl", "--role", "worker", "--tiers", "fast=6,slow=3") == (0, line)


@pytest.mark.slow
def test_wrong_password_and_missing_rights(start, url, shared_server):
    """The error names what to change."""
    server = shared_server("valkey")
    server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+ping", "+client|setname", "+client|setinfo")
    try:
        wrong = one_line(start("worker", "app", "--url", url.replace("unix://", "unix://bob:hunter2@")))
        refused = one_line(start("enqueue", "send", "--url", url.replace("unix://", "unix://bob:right@")))
    finally:
        server.command("ACL", "DELUSER", "bob")
    assert "password" in wrong
    assert ".;" not in wrong
    assert f"write the user and the password into the URL: unix://user:password@{server.socket}, or" in wrong
    assert wrong.endswith("give it with --url or STREAMQ_URL")
    assert "xadd" in refused.lower()
    assert "streamq acl" in refused
    assert "'streamq doctor --role ROLE' as this user (ROLE is producer, worker, monitor or operator)" in refused


GROUPED = """
import contextlib, anyio
from app import send

@contextlib.asynccontextmanager
async def lifespan(worker):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield
        group.cancel_scope.cancel()
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--backend", "asyncio"], ["--backend", "trio"], ["-p", "2"]])
def test_a_worker_that_cannot_begin_says_why_in_one_line(start, app, options):
    """A missing right, and a key of another type: no traceback, also with a lifespan, and no restarts with -p."""
    (app / "grouped.py").write_text(GROUPED)
    with fresh_server("valkey") as server:
        for tier in ("critical", "standard", "bulk"):
            server.command("XGROUP", "CREATE", f"queue:{tier}", "workers", "0", "MKSTREAM")
        server.command("ACL", "SETUSER", "bob", "on", ">right", "~*", "&*", "+@all", "-evalsha")
        bob = server.url.replace("unix://", "unix://bob:right@")
        refused = one_line(start("worker", "grouped", "--log-level", "warning", "--url", bob, *options))
        server.command("SET", "queue:dead", "text")
        other = one_line(start("worker", "grouped", "--log-level", "warning", "--url", server.url, *options))
    assert "NOPERM" in refused
    assert "run 'streamq doctor --role worker' as this user" in refused
    assert "everything else goes on" not in refused
    assert "the key 'queue:dead' is no stream" in other
    assert other.count("namespace") == 1


@pytest.mark.slow
def test_no_user_where_the_user_default_is_off(streamq):
    """One remedy, which works: a password alone would be that of the user who is off."""
    with fresh_server("valkey") as server:
        server.command("ACL", "SETUSER", "default", "off")
        code, line = streamq("enqueue", "send", "--url", server.url)
        found = streamq("doctor", "--url", server.url)[1]
    assert code == 2
    assert line.count("unix://user:password@") == 1
    assert "requires a login: Authentication required; write the user and the password into the URL" in line
    assert line.endswith("--url or STREAMQ_URL")
    assert "requires a login" in " ".join(found.split())
    assert found.count("unix://user:password@") == 1
    assert "redis://" not in found


def test_a_broker_of_the_module_and_an_option_contradict(start, app, url):
    """A broker in a module replaces the environment. An option on the command line is then an error."""
    (app / "own.py").write_text(f"from app import send\nimport streamq\nbroker = streamq.RedisBroker({url!r})\n")
    line = one_line(start("worker", "own", "--namespace", "other"))
    assert "--namespace: own.broker defines the queue" in line


def test_help_is_quick_and_imports_nothing_heavy():
    """`streamq --help` must be quick: it imports no redis, no anyio and no rich."""
    code = (
        "import sys, click\n"
        "before = set(sys.modules)\n"  # what click loads is for click to say
        "from streamq.cli import main\ntry:\n    main(['worker', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'redis', 'anyio', 'rich', 'orjson', 'asyncio', 'trio'} & (set(sys.modules) - before)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_malformed_url_shows_its_password_in_no_command(streamq, tmp_path):
    """P13: also if a module that is imported would raise an error that quotes it."""
    (tmp_path / "quoting.py").write_text(
        "import os\nfrom streamq import task\nraise ValueError(os.environ['STREAMQ_URL'])\n"
    )
    for url in ("redis://u:hunter2/", "redis://u:hunter2/x@h"):
        code, output = streamq("worker", str(tmp_path / "quoting.py"), env={"STREAMQ_URL": url})
        assert code == 2
        assert "cannot be used" in output
        assert "hunter2" not in output


def test_a_port_without_tls_needs_no_other_remedy():
    """The client has found out what to write."""
    for why in (
        "no connection to h:1 within 5 s; it does not speak TLS: write redis:// in place of rediss://",
        "no connection to h:1: reset; it speaks TLS: write rediss:// in place of redis://",
        "no connection to h:1: no; for TLS, give the certificate of its authority in the URL: ssl_ca_certs=FILE",
    ):
        assert from_streamq_error(BrokerUnavailableError(why)).format_message() == why
        finding = _server_unusable(BrokerUnavailableError(why), "h:1")
        assert (finding.code, finding.remedy) == ("unreachable", "")
    assert "start a Redis" in from_streamq_error(BrokerUnavailableError("no connection to h:1")).format_message()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("OOM", "raise the limit: redis-cli CONFIG SET maxmemory 4gb (the value is yours to choose"),
        ("READONLY", "give the address of its primary"),
        ("MISCONF", "No space left"),
        ("NOREPLICAS", "start the replicas"),
        ("LOADING", "wait until it has loaded its data"),
        ("WRONGTYPE", "choose another namespace"),
    ],
)
def test_what_a_server_refuses_has_a_remedy(code, words):
    """The same as the doctor's."""
    assert words in from_streamq_error(BrokerError(f"{code} no", code=code)).format_message()


@pytest.mark.slow
def test_a_full_server_and_a_replica_say_what_to_do(streamq):
    """In the line of the command that they refuse."""
    with fresh_server("valkey") as server:
        server.command("CONFIG", "SET", "maxmemory", "1")
        code, full = streamq("enqueue", "send", "--url", server.url)
        assert (code, "CONFIG SET maxmemory" in full) == (2, True)
        server.command("CONFIG", "SET", "maxmemory", "0")
        server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
        server.command("REPLICAOF", "127.0.0.1", "1")
        code, replica = streamq("enqueue", "send", "--url", server.url)
        assert (code, "give the address of its primary" in replica) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "URL"], ["worker", "URL"], ["worker", "app", "--concurrency", "URL"], ["doctor", "--group", "URL"],
        ["doctor", "--role", "URL"], ["URL"], ["doctor", "--tiers", "URL"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", ["redis://u:hunter2@h", "rediss://:hun/ter2hunter2@h/0", "redis://hunter2@h"])
def test_a_url_in_the_wrong_place_is_shown_without_its_login(words, url, capsys):
    """Where an option's name was forgotten, the URL is an argument, and an error repeats it."""
    assert _run([url if word == "URL" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert said.startswith("streamq: error: ")


def test_the_words_of_a_remedy_are_no_login():
    message = "write redis://user:password@h:1, or redis://:password@h:1"
    assert CommandLineError(message).format_message() == message
