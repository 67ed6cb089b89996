"""`embedded://` trusts no directory that others own or may write (P13)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import anyio.to_thread
import pytest

from streamq import RedisBroker
from streamq.embedded import EmbeddedServer
from streamq.embedded.private_files import check_private_directory, make_private_directory, write_own_file
from streamq.errors import ConfigurationError

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def refused(directory: Path, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        make_private_directory(directory)
    assert f"embedded://{directory}" in str(caught.value)
    assert "mode 700" in str(caught.value)


@pytest.fixture(autouse=True)
def _usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_what_is_made_is_for_this_user_alone(tmp_path, umask):
    """The directories above it, too, whatever the umask is."""
    os.umask(umask)
    directory = tmp_path / "a" / "b" / "c"
    make_private_directory(directory)
    for made in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    write_own_file(directory / "file", "x")
    assert stat.S_IMODE((directory / "file").stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o707, 0o702])
def test_a_directory_that_others_may_write_is_refused(tmp_path, mode):
    """Also a sticky one: they could make our files there before us."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    refused(tmp_path / "open", "others may write to it")


def test_so_is_one_in_a_directory_that_others_may_write_unless_that_is_sticky(tmp_path):
    (tmp_path / "above" / "data").mkdir(parents=True)
    (tmp_path / "above").chmod(0o777)
    refused(tmp_path / "above" / "data", "so they can replace what is in it")
    refused(tmp_path / "above" / "new" / "data", "so they can replace what is in it")
    (tmp_path / "above").chmod(0o1777)
    make_private_directory(tmp_path / "above" / "data")


@as_root
def test_a_group_with_others_in_it_counts_as_others(tmp_path):
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 0, NOBODY)
    (tmp_path / "data").chmod(0o770)
    refused(tmp_path / "data", "others may write to it")
    (tmp_path / "data").chmod(0o750)
    make_private_directory(tmp_path / "data")


@as_root
@pytest.mark.parametrize("place", ["data", "."])
def test_a_directory_of_another_user_is_refused_and_so_is_one_in_it(tmp_path, place):
    (tmp_path / "theirs" / "data").mkdir(parents=True)
    os.chown(tmp_path / "theirs" / place, NOBODY, NOBODY)
    refused(tmp_path / "theirs" / "data", "belongs to another user")


@as_root
def test_a_link_of_another_user_is_not_followed(tmp_path):
    """Not as the directory, not above it, and not behind a link of ours."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    theirs = tmp_path / "sticky" / "link"
    theirs.symlink_to(tmp_path / "real")
    os.lchown(theirs, NOBODY, NOBODY)
    (tmp_path / "ours").symlink_to(theirs)
    for directory in (theirs, theirs / "data", tmp_path / "ours"):
        refused(directory, "belongs to another user")


def test_a_link_of_ones_own_is_followed(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_private_directory(tmp_path / "link" / "data")


@pytest.mark.parametrize("name", ["server.log", "streamq.socket", "streamq.lock", "streamq.owner", "appendonlydir"])
def test_a_link_in_the_directory_is_refused_and_not_written_through(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / name).symlink_to(victim)
    refused(tmp_path / "data", f"{name} in it is a symbolic link")
    with pytest.raises(OSError, match=r"."):
        write_own_file(tmp_path / "data" / name, "x")
    assert victim.read_text() == "precious"


@as_root
def test_a_file_of_another_user_in_the_directory_is_refused(tmp_path):
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "streamq.socket").write_text("/tmp/trap.sock")
    os.chown(tmp_path / "data" / "streamq.socket", NOBODY, NOBODY)
    refused(tmp_path / "data", "streamq.socket in it belongs to another user")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "it is no directory")
    refused(tmp_path / "file" / "data", "cannot be")


async def test_the_files_of_a_server_are_this_users_alone(tmp_path):
    """Also in a directory that others may read: the append-only file has the arguments of tasks."""
    directory = tmp_path / "old"
    directory.mkdir(mode=0o755)
    async with RedisBroker(f"embedded://{directory}") as broker:
        await broker.enqueue("mail", password="hunter2")
        found = [Path(folder) / name for folder, _, names in os.walk(directory) for name in names]
        assert len(found) >= 4
        for path in found:
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("trap", ["open/trap.sock", "relative"])
async def test_a_server_elsewhere_is_not_joined(tmp_path, trap):
    """The address of the server in the directory leads to a socket of this user's, in a private directory."""
    directory = tmp_path / "data"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "trap.sock").write_text("")
    async with EmbeddedServer(str(directory)):
        (directory / "streamq.socket").write_text(trap if trap == "relative" else str(tmp_path / trap))
        with pytest.raises(ConfigurationError, match="cannot be used"):
            await anyio.to_thread.run_sync(EmbeddedServer(str(directory)).start)


def test_the_usual_places_are_fine(tmp_path):
    check_private_directory(tmp_path)
