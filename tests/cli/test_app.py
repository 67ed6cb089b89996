"""`--app`, and `app` of `[tool.streamq]`: commands that know the queue and the tasks of the workers."""

from __future__ import annotations

import json
import sys

import pytest

from streamq.cli import app as apps
from streamq.cli.entry import _run
from streamq.wire.command_line import name_by_app

APP = """
from dataclasses import dataclass
from streamq import Priority, RedisBroker, Tier, batch_task, task

broker = RedisBroker({url!r}, namespace="tt", group="g", tiers=[Tier("mail", threshold=10), Tier("media")])
print("importing")

@dataclass
class Order:
    number: int

@task(tier="media", retries=7)
async def resize(name: str, width: int = 10) -> None: ...

@task(priority=Priority.HIGH)
async def send(to: str) -> None: ...

@batch_task(size=2)
async def index(items: list[Order]) -> None: ...

@task
async def ship(order: Order, by: "Order | None" = None) -> None: ...
"""


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


@pytest.fixture
def project(tmp_path, monkeypatch, valkey):
    """A folder with the app `shop`, as the current directory."""
    (tmp_path / "shop.py").write_text(APP.format(url=valkey.url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    apps.load_app.cache_clear()
    name_by_app(None)


@pytest.fixture
def run(project, capfd):
    """Run a command in this process, and return its exit code and its lines on stdout and stderr."""

    def command(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = _run(arguments)
        out, err = capfd.readouterr()
        return code, out.splitlines(), [line for line in err.splitlines() if line != "importing"]

    return command


def sent(server, stream: str) -> dict[str, str]:
    """Return the newest entry of a stream."""
    ((_, flat),) = server.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
    texts = [part.decode() for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


# --- the queue -------------------------------------------------------------------------------------


def test_every_command_has_the_queue_of_the_app(run, valkey, monkeypatch):
    """Its server, namespace, tiers and group, whatever variables say; stdout has the result alone."""
    monkeypatch.setenv("STREAMQ_NAMESPACE", "other")
    monkeypatch.setenv("STREAMQ_TIERS", "a,b")
    monkeypatch.setenv("STREAMQ_QUEUE", "other:q")
    code, (line,), err = run("enqueue", "send", "a@b.c", "--app", "shop", "--json")
    assert (code, json.loads(line)["stream"], err) == (0, "tt:mail", [])
    task_id = json.loads(line)["task_id"]
    assert run("cancel", task_id, "--app", "shop")[:2] == (0, [f"{task_id}: withdrawn"])
    valkey.command("XADD", "tt:dead", "*", "task_id", "old", "task", "send", "tier", "media", "args", '["a"]')
    assert run("dlq", "ls", "--app", "shop", "--json")[1]
    assert run("dlq", "replay", "old", "--app", "shop")[0] == 0
    assert valkey.command("XLEN", "tt:media") == 1
    assert run("schedules", "ls", "--app", "shop")[2] == ["tt:schedules holds 0 schedules"]
    rules = run("acl", "--role", "worker", "--app", "shop")[1][0].split()
    assert {"~tt:media", "~tt:mail:alive:g"} <= set(rules)
    monkeypatch.setenv("STREAMQ_APP", "shop")
    report = json.loads(run("doctor", "--json", "--scan", "0")[1][0])
    assert (report["namespace"], report["group"]) == ("tt", "g")


def test_the_command_line_goes_before_the_app(run, valkey):
    """One option in the place of the app's, and the rest as the app has it."""
    rules = run("acl", "--role", "worker", "--app", "shop", "--namespace", "uu")[1][0].split()
    assert {"~uu:media", "~uu:mail:alive:g"} <= set(rules)
    rules = run("acl", "--role", "worker", "--app", "shop", "--group", "h")[1][0].split()
    assert "~tt:mail:alive:h" in rules
    rules = run("acl", "--role", "worker", "--app", "shop", "--tiers", "media")[1][0].split()
    assert ("~tt:media" in rules, "~tt:mail" in rules) == (True, False)
    rules = run("acl", "--role", "worker", "--app", "shop", "--tiers", "media,other")[1][0].split()
    assert "~tt:other" in rules
    rules = run("acl", "--role", "worker", "--app", "shop", "--queue", "x:y")[1][0].split()
    assert {"~x:y", "~x:y:alive:g"} <= set(rules)
    code, _, (line,) = run("acl", "--role", "worker", "--app", "shop", "--queue", "x:y", "--tiers", "a")
    assert (code, "--queue x:y and --tiers" in line) == (2, True)
    code, _, (line,) = run("dlq", "ls", "--app", "shop", "--url", "redis://localhost:1")
    assert (code, "no connection to localhost:1" in line) == (2, True)


def test_remedies_name_the_app(run, valkey):
    """It has the server, too, which no other option of a remedy has."""
    assert "streamq dlq ls --app shop" in run("dlq", "show", "none", "--app", "shop")[2][0]
    remedy = run("dlq", "show", "none", "--app", "shop", "--group", "h")[2][0]
    assert "streamq dlq ls --app shop --group h" in remedy
    remedy = run("dlq", "show", "none", "--app", "shop", "--url", valkey.url)[2][0]
    assert "streamq dlq ls --namespace tt --group g --tiers mail,media" in remedy
    valkey.command("XADD", "tt:now", "*", "task", "send")
    (remedy,) = [line for line in run("doctor", "--app", "shop")[1] if "streamq doctor" in line]
    assert remedy.endswith("streamq doctor --app shop --queue tt:now")
    (remedy,) = [line for line in run("doctor", "--app", "shop", "--tiers", "media")[1] if "streamq doctor" in line]
    assert remedy.endswith("-> streamq doctor --group g --queue tt:now")
    remedy = run("dlq", "show", "none", "--url", valkey.url, "--namespace", "tt")[2][0]
    assert "streamq dlq ls --namespace tt" in remedy


def test_an_app_without_a_broker_has_tasks_alone(run, project, valkey):
    """The queue is that of options and variables, as for its workers."""
    (project / "bare.py").write_text("from streamq import task\n\n@task(tier='bulk')\nasync def send(to: str): ...\n")
    code, (line,), _ = run("enqueue", "send", "x", "--app", "bare", "--url", valkey.url, "--json")
    assert (code, json.loads(line)["stream"]) == (0, "queue:bulk")


def test_signing_keys(run, project, monkeypatch):
    """Keys that the broker of the app does not have are an error, unless they stand on the command line."""
    monkeypatch.setenv("STREAMQ_SIGNING_KEYS", "k1=" + "aa" * 32)
    code, _, (line,) = run("enqueue", "send", "x", "--app", "shop")
    assert (code, "there are signing keys, and shop.broker has none" in line) == (2, True)
    monkeypatch.delenv("STREAMQ_SIGNING_KEYS")
    keys = project / "keys"
    keys.write_text("k1=" + "aa" * 32)
    keys.chmod(0o600)
    assert run("enqueue", "send", "x", "--app", "shop", "--signing-keys", str(keys))[0] == 0


# --- the tasks -------------------------------------------------------------------------------------


def test_a_task_is_sent_as_it_is_declared(run, valkey):
    """Its tier, its priority, its arguments. An option of the command goes before it."""
    assert run("enqueue", "resize", "a.png", "--app", "shop")[0] == 0
    assert sent(valkey, "tt:media")["task"] == "resize"
    assert run("enqueue", "resize", "a.png", "--app", "shop", "--tier", "mail", "--retries", "1")[0] == 0
    assert sent(valkey, "tt:mail")["retries"] == "1"
    assert run("enqueue", "send", "a@b.c", "--app", "shop")[0] == 0
    assert sent(valkey, "tt:mail")["priority"] == "50"


def test_arguments_are_those_of_the_task(run, valkey):
    """JSON is read as a worker reads it. What does not fit is refused, by name, before anything is sent."""
    assert run("enqueue", "ship", '{"number": 3}', "-k", 'by={"number":4}', "--app", "shop")[0] == 0
    fields = sent(valkey, "tt:mail")
    assert json.loads(fields["args"]) == [{"number": 3}]
    assert json.loads(fields["kwargs"]) == {"by": {"number": 4}}
    assert run("enqueue", "index", '{"number": 5}', "--app", "shop")[0] == 0
    for arguments, says in (
        (["index", '{"count": 3}'], "argument item"),
        (["resize", "a.png", "wide"], "argument width = 'wide'"),
        (["resize"], "missing a required argument: 'name'"),
        (["resize", "a", "-k", "high=3"], "got an unexpected keyword argument 'high'"),
        (["ship", '{"count": 3}'], "argument order"),
    ):
        code, out, (line,) = run("enqueue", *arguments, "--app", "shop")
        assert (code, out, says in line) == (2, [], True), line
    assert valkey.command("XLEN", "tt:mail") == 2
    assert valkey.command("XLEN", "tt:media") == 0


def test_an_unknown_name_is_refused_with_those_that_are_near(run, valkey):
    """Unless it is forced: a worker of another release may know it."""
    code, out, (line,) = run("enqueue", "sned", "x", "--app", "shop")
    assert (code, out) == (2, [])
    assert "no task 'sned' in shop, which has send; give --force" in line
    assert "which has index, resize, send, ship; give" in run("enqueue", "quux", "--app", "shop")[2][0]
    assert valkey.command("XLEN", "tt:mail") == 0
    assert run("enqueue", "sned", "x", "--app", "shop", "--force")[0] == 0
    assert sent(valkey, "tt:mail")["task"] == "sned"


def test_a_tier_of_the_app_that_nobody_reads_yet(run, valkey):
    """Is a warning: it is the right one."""
    valkey.command("XGROUP", "CREATE", "tt:mail", "g", "0", "MKSTREAM")
    code, (_,), (line,) = run("enqueue", "resize", "a.png", "--app", "shop")
    assert (code, "warning: tt:media has no consumer group" in line) == (0, True)


def test_a_namespace_that_nobody_reads(run, valkey):
    """Is a warning if it is that of the app, and is refused if it stands on the command line."""
    valkey.command("XGROUP", "CREATE", "events:mail", "workers", "0", "MKSTREAM")
    valkey.command("ZADD", "events:mail:alive:workers", 1, "w")
    code, (_,), (line,) = run("enqueue", "send", "x", "--app", "shop")
    assert (code, "workers have served events: start a worker" in line) == (0, True)
    for option, value in (("--namespace", "typo"), ("--queue", "typo:mail")):
        code, out, (line,) = run("enqueue", "send", "x", "--app", "shop", option, value)
        assert (code, out, valkey.command("EXISTS", "typo:mail")) == (1, [], 0)
        assert f"workers have served events: give another {option}, or leave it out; nothing was sent" in line
    assert run("enqueue", "send", "x", "--app", "shop", "--namespace", "events")[::2] == (0, [])
    code, (_,), (line,) = run("enqueue", "resize", "x", "--app", "shop", "--namespace", "events")
    assert (code, "warning: events:media has no consumer group" in line, "--app" in line) == (0, True, False)
    assert run("enqueue", "send", "x", "--app", "shop", "--namespace", "typo", "--force")[0] == 0


# --- the project -----------------------------------------------------------------------------------


def test_the_nearest_pyproject_names_the_app(run, project, monkeypatch, valkey):
    """From a folder below it, too; not if an option says which queue is meant."""
    (project / "pyproject.toml").write_text('[tool.streamq]\napp = "shop"\n')
    below = project / "src" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert run("enqueue", "resize", "a.png")[0] == 0
    assert valkey.command("XLEN", "tt:media") == 1
    assert "(streamq dlq ls" not in run("dlq", "show", "none")[2][0]
    assert "'streamq dlq ls'" in run("dlq", "show", "none")[2][0]
    assert run("schedules", "ls", "--url", valkey.url)[2] == ["queue:schedules holds 0 schedules"]
    (below.parent / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "~queue:bulk" in run("acl", "--role", "worker")[1][0].split()


@pytest.mark.parametrize("named", ['["shop", "more"]', '"shop, more"', '["shop.py", "more.py:other"]'])
def test_several_modules(run, project, named):
    """A list, or commas. A path is one from the folder of pyproject.toml."""
    (project / "more.py").write_text("from streamq import task\n\n@task\nasync def other(): ...\n")
    (project / "pyproject.toml").write_text(f"[tool.streamq]\napp = {named}\n")
    assert run("enqueue", "other")[0] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.streamq]\napp = 3\n", '[tool.streamq] takes app = "shop.tasks", or a list of modules'),
        ("[tool.streamq]\napp = ''\n", '[tool.streamq] takes app = "shop.tasks"'),
        ("[tool]\nstreamq = 'shop'\n", '[tool.streamq] takes app = "shop.tasks"'),
        ("[tool.streamq]\nmodule = 'shop'\n", "[tool.streamq] has no setting module"),
        ("[tool.streamq\n", "pyproject.toml cannot be read: "),
        ("[tool.streamq]\napp = 'nope'\n", "no module 'nope' here"),
    ],
)
def test_a_setting_that_cannot_be_used(run, project, text, says):
    """Is one line that names the file. Another program's file that cannot be read is none of ours."""
    (project / "pyproject.toml").write_text(text)
    code, _, (line,) = run("dlq", "ls")
    assert (code, says in line) == (2, True), line
    (project / "pyproject.toml").write_text("[tool.other\n")
    assert run("acl", "--role", "worker")[0] == 0


# --- modules that are no good ----------------------------------------------------------------------

OPENED = """
import anyio, anyio.from_thread
from streamq import RedisBroker
broker = RedisBroker({url!r})
started = anyio.from_thread.start_blocking_portal("{backend}")
portal = started.__enter__()
portal.wrap_async_context_manager(broker).__enter__()
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ValueError('no config')", "shop cannot be imported: ValueError: no config (shop.py:1)"),
        ("import sys; sys.exit('usage: shop')", "usage: shop (the module calls exit on import"),
        ("import nothing_there", "ModuleNotFoundError: No module named 'nothing_there' (shop.py:1)"),
        ("broker = 'redis://x'", "shop.broker is of type str: give a RedisBroker"),
        ("from streamq import SyncBroker\nbroker = SyncBroker('memory://')", "shop.broker: a SyncBroker of memory://"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(run, project, text, says):
    """With the file and the line."""
    (project / "shop.py").write_text(text)
    code, out, (line,) = run("dlq", "ls", "--app", "shop")
    assert (code, out, says in line) == (2, [], True), line


@pytest.mark.slow
def test_a_broker_that_is_open_already(start, app, url, anyio_backend):
    """It is of another event loop. The command ends, though a thread of the module goes on."""
    (app / "shop.py").write_text(OPENED.format(url=url, backend=anyio_backend))
    program = start("dlq", "ls", "--app", "shop")
    assert program.ended() == 2, program.output
    (line,) = program.seen
    assert "is open already: open it once" in line


def test_two_brokers(run, project, valkey):
    """None of them is called `broker`, or each module has one: pick one by its name."""
    text = f"from streamq import RedisBroker\na = RedisBroker({valkey.url!r}, namespace='a')\n"
    (project / "one.py").write_text(text)
    (project / "two.py").write_text(text + f"b = RedisBroker({valkey.url!r}, namespace='b')\n")
    code, _, (line,) = run("dlq", "ls", "--app", "two")
    assert (code, "two has several brokers, two:a, two:b: call the one of the workers `broker`" in line) == (2, True)
    code, _, (line,) = run("dlq", "ls", "--app", "one")
    assert (code, "a broker of another name, one:a" in line, "--app one:a" in line) == (2, True, True)
    assert run("dlq", "ls", "--app", "two:b")[::2] == (0, ["b:dead holds 0 dead letters"])
    (project / "three.py").write_text(text + "broker = a\n")
    code, _, (line,) = run("dlq", "ls", "--app", "three,shop")
    assert (code, "three.broker and shop.broker differ: a worker has one broker; pick one: " in line) == (2, True)
    assert run("dlq", "ls", "--app", "three,shop:broker")[::2] == (0, ["tt:dead holds 0 dead letters"])


SYNC = """
from streamq import DeadLetterBound, SigningKeys, SyncBroker, Tier, task

broker = SyncBroker(
    {url!r}, namespace="ss", group="g", tiers=[Tier("mail", threshold=10), Tier("media")], max_payload=5_000,
    connect_timeout=3, reply_timeout=4, dead_letters=DeadLetterBound(max_size=7),
    signing=SigningKeys({{"k1": b"a" * 32}}),
)
single = SyncBroker({url!r}, queue_name="x:y")

@task(tier="mail")
def double(number: int) -> None:
    print("doubled", 2 * number, flush=True)

@task(tier="mail")
def send(number: int) -> None:
    broker.enqueue(double, number)
"""


def test_the_queue_of_a_sync_broker(run, project, valkey):
    """Is that of the app, with every setting; also if it is picked by its name, or is of a single stream."""
    (project / "shop.py").write_text(SYNC.format(url=valkey.url))
    assert run("enqueue", "send", "3", "--app", "shop")[::2] == (0, [])
    assert sent(valkey, "ss:mail")["sig"].startswith("v1:k1:")
    assert run("schedules", "ls", "--app", "shop:single")[2] == ["x:schedules holds 0 schedules"]
    assert "~x:y" in run("acl", "--role", "worker", "--app", "shop:single")[1][0].split()
    loaded = apps.load_app(("shop",), None)
    own, theirs = sys.modules["shop"].broker._broker, loaded.broker
    settings = ("url", "keys", "tiers", "max_payload", "timeouts", "dead_letters", "signing", "middleware", "clock")
    assert [getattr(theirs, name) for name in settings] == [getattr(own, name) for name in settings]
    (project / "more.py").write_text("from shop import broker, send\n")
    assert run("dlq", "ls", "--app", "shop,more")[::2] == (0, ["ss:dead holds 0 dead letters"])


# --- workers ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_of_a_sync_broker(start, app, url, anyio_backend):
    """Runs what it sends, and its handlers send with it."""
    (app / "shop.py").write_text(SYNC.format(url=url))
    (worker := start("worker", "shop", "--backend", anyio_backend)).expect("ss:mail")
    assert start("enqueue", "send", "4", "--app", "shop").ended() == 0
    worker.expect("doubled 8")


@pytest.mark.slow
def test_a_worker_without_a_module_runs_the_app(start, app, url):
    """Of pyproject.toml, from a folder below it, in each process; and that of STREAMQ_APP before it."""
    (app / "shop.py").write_text(APP.format(url=url) + "ours = RedisBroker(broker.url, namespace='ours')\n")
    (app / "pyproject.toml").write_text('[tool.streamq]\napp = "shop"\n')
    (app / "deep").mkdir()
    worker = start("worker", "--burst", "-p", "2", cwd=app / "deep")
    worker.expect("tt:mail x1")
    variable = start("worker", "--burst", cwd=app / "deep", env={"STREAMQ_APP": "../shop.py:ours"})
    variable.expect("ours:critical x6")
    assert worker.ended() == variable.ended() == 0
