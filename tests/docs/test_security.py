"""The steps of docs/security.md are done as they stand there: the rules that are printed, the user, the check, TLS."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from streamq.wire.rights import BASE, CONNECT, FEATURES, ROLES
from tests.docs.pages import BLOCKS, ROOT, table_under
from tests.servers import fresh_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Kind

PAGE = ROOT / "docs" / "security.md"
OURS = [block for block in BLOCKS if block.page == PAGE]
LINES = [shlex.split(line) for block in OURS if block.language == "console" for line in block.code.splitlines()]
PASSWORD = "7c1f0e55d2aa4be0"


def run(arguments: list[str]) -> tuple[int, str]:
    from streamq.cli.entry import cli

    result = CliRunner().invoke(cli, arguments, prog_name="streamq", catch_exceptions=False)
    return result.exit_code, result.output


def test_the_rules_are_those_that_are_printed() -> None:
    """What the page shows is what the command prints."""
    (command,) = [words for words in LINES if words[:2] == ["streamq", "acl"]]
    (shown,) = [block.code for block in OURS if block.code.startswith("ACL SETUSER")]
    _, printed = run(command[1:])
    assert printed == shown


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH")
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_steps(kind: Kind) -> None:
    """The second and the third step are done by a shell, as they stand there: the check is content."""
    made = next(block.code for block in OURS if "GENPASS" in block.code)
    checked = next(block.code for block in OURS if 'STREAMQ_URL="redis://' in block.code)
    with fresh_server(kind) as server:
        path = server.url.partition("://")[2].partition("?")[0]
        where = f"unix://web:$PASSWORD@{path}"
        assert checked.count("redis://web:$PASSWORD@redis.internal:6379") == 1
        script = "\n".join((
            f'redis-cli() {{ command redis-cli -s {shlex.quote(path)} "$@"; }}',
            f'streamq() {{ {shlex.quote(sys.executable)} -m streamq "$@"; }}',
            made, checked.replace("redis://web:$PASSWORD@redis.internal:6379", where), "echo password=$PASSWORD",
        ))  # fmt: skip
        done = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    output, _, password = done.stdout.strip().rpartition("password=")
    assert done.returncode == 0, done.stderr
    assert "permissions_fine" in output
    assert len(password) == 64
    assert password not in output + done.stderr


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on PATH")
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_administrator(kind: Kind) -> None:
    """The fourth step: the administrator logs in, and nobody else by default."""
    made = next(block.code for block in OURS if "SETUSER default off" in block.code)
    with fresh_server(kind) as server:
        path = server.url.partition("://")[2].partition("?")[0]
        script = "\n".join((
            f'redis-cli() {{ command redis-cli -s {shlex.quote(path)} "$@"; }}', made,
            "redis-cli --user admin ACL WHOAMI", "unset REDISCLI_AUTH", "redis-cli ACL WHOAMI 2>&1",
        ))  # fmt: skip
        done = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout.split("\n")
    assert said[:4] == ["OK", "admin", "OK", "admin"], done
    assert said[4].startswith("NOAUTH"), done


def test_the_tables() -> None:
    """The tables have every role and every feature, as the rules do."""
    rows = [row for row in table_under(PAGE, "### Roles and features") if len(row) == 3]  # of the first table
    roles = {row[0]: row[2].replace("`", "") for row in rows}
    assert list(roles) == list(ROLES)
    for role in ("producer", "monitor", "operator"):
        own = {name for name, feature in FEATURES.items() if role in feature.roles} - {CONNECT}
        assert {word.strip() for word in roles[role].split(",")} == own
        assert BASE[role] in own
    for name, feature in FEATURES.items():
        assert f"| `{name}` | {feature.about} |" in PAGE.read_text()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
def test_tls(tmp_path: Path) -> None:
    """A server with the lines of the page takes a client with the URL of the page, and the name is checked."""
    (settings,) = [block.code for block in OURS if "tls-port" in block.code]
    (url,) = [words[-1].removeprefix("STREAMQ_URL=") for words in LINES if "rediss://" in words[-1]]
    url = url.replace("$PASSWORD", PASSWORD)
    make_certificates(tmp_path)
    lines = settings.replace("/etc/redis/tls", str(tmp_path)).splitlines()
    options = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    port = free_port()
    del options["port"]
    arguments = [word for name, value in options.items() for word in (f"--{name}", value.replace("6379", str(port)))]
    with fresh_server("redis", *arguments) as server:
        (rules,) = [block.code for block in OURS if block.code.startswith("ACL SETUSER")]
        server.command(*rules.replace("PASSWORD", PASSWORD).split())
        url = url.replace("/etc/ssl/redis-ca.crt", str(tmp_path / "ca.crt"))
        code, output = run(["doctor", "--role", "producer", "--features", "delayed,results", "--url",
                            url.replace("redis.internal:6379", f"localhost:{port}")])  # fmt: skip
        assert "permissions_fine" in output
        assert code == 0
        code, output = run(["doctor", "--url", url.replace("redis.internal:6379", f"127.0.0.1:{port}")])
        assert "unreachable" in output  # the certificate is for localhost
        assert code == 2


def make_certificates(folder: Path) -> None:
    """Make an authority, and a certificate for `localhost`. Python 3.13 asks for what the authority says of its key."""
    openssl = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    )
    ca, crt = ("-keyout", "ca.key", "-out", "ca.crt"), ("-keyout", "server.key", "-out", "server.crt")
    subprocess.run(
        [*openssl, "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign", *ca],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        [*openssl, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext",
         "basicConstraints=critical,CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key", *crt],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
