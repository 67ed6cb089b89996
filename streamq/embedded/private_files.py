"""Files that are this user's alone: where `embedded://` keeps its data, its locks and the address of its server.

Who can write to the directory of a server can read its tasks, run tasks, or have this process overwrite a file of
somebody else through a symbolic link. So the directory belongs to this user, others cannot write to it, and nobody but
this user and root can put another one in its place: that is checked for each directory above it, and for each symbolic
link on the way. In a sticky directory (/tmp) others cannot. What is opened there is no link and belongs to this user.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from streamq.errors import ConfigurationError

_NAMES = ("streamq.lock", "streamq.owner", "streamq.socket", "server.log", "server.sock", "appendonlydir", "dump.rdb")
_REMEDY = "use a directory of this user's own, with the mode 700"


def make_private_directory(directory: Path) -> None:
    """Make a directory, with those above it that are missing, for this user alone. One that exists stays as it is.

    Raises ConfigurationError unless it is this user's alone, with the files of a server in it.
    """
    try:
        missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
        for path in reversed(missing):
            try:
                path.mkdir(mode=0o700)  # whatever the umask is, nobody else gets a right by it
            except FileExistsError:
                continue  # made by another process; it is checked below
    except OSError as error:
        raise _refused(directory, f"it cannot be made ({error.strerror})") from error
    check_private_directory(directory)


def check_private_directory(directory: Path) -> None:
    """Raise ConfigurationError unless a directory is this user's alone, with the files of a server in it."""
    if not hasattr(os, "getuid"):
        return
    try:
        for link in _links(directory):
            _check_owner(directory, link)
        real = directory.resolve(strict=True)
        for above in real.parents:
            _check_owner(directory, above)
            found = above.stat()
            if _others_may_write(found) and not found.st_mode & stat.S_ISVTX:
                raise _refused(directory, f"others may write to {above}, so they can replace what is in it")
        found = real.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise _refused(directory, "it is no directory")
        if found.st_uid != os.geteuid():
            raise _refused(directory, f"it belongs to another user (uid {found.st_uid})")
        if _others_may_write(found):
            raise _refused(directory, f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})")
        for name in _NAMES:
            check_own_file(real / name, directory)
    except OSError as error:
        raise _refused(directory, f"it cannot be used ({error.strerror})") from error


def check_own_file(path: Path, directory: Path) -> None:
    """Raise ConfigurationError if a file is there that is a symbolic link, or that others own or may write."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise _refused(directory, f"{path.name} in it is a symbolic link; remove it")
    if found.st_uid != os.geteuid():
        raise _refused(directory, f"{path.name} in it belongs to another user (uid {found.st_uid})")
    if _others_may_write(found) and not stat.S_ISSOCK(found.st_mode):
        raise _refused(directory, f"others may write to {path.name} in it (mode {stat.S_IMODE(found.st_mode):o})")


def open_own_file(path: Path, flags: int) -> int:
    """Open a file for this user alone, make it if it is missing, and return its descriptor. A link is not followed.

    Raises OSError.
    """
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)


def write_own_file(path: Path, text: str) -> None:
    """Write a file that only this user can read. Raises OSError."""
    with open(open_own_file(path, os.O_WRONLY | os.O_TRUNC), "w") as file:
        file.write(text)


def check_own_socket(path: str, directory: Path) -> None:
    """Raise ConfigurationError unless a socket is in a directory of this user's alone, and this user's.

    Raises FileNotFoundError if there is none, and ValueError if the path is empty: its server may be about to write it.
    """
    if not path:
        raise ValueError("no path")
    if not Path(path).is_absolute():
        raise _refused(directory, "the path in streamq.socket is not absolute")
    Path(path).lstat()
    check_private_directory(Path(path).parent)
    check_own_file(Path(path), directory)


def _links(path: Path) -> list[Path]:
    """Return the symbolic links on the way to a path, those that other links lead to included."""
    found: list[Path] = []
    whole = Path(path.anchor)
    for part in path.parts[1:]:
        whole /= part
        if whole.is_symlink() and len(found) < 40:
            found += [whole, *_links(Path(os.path.normpath(whole.parent / whole.readlink())))]
    return found


def _check_owner(directory: Path, above: Path) -> None:
    """Raise ConfigurationError unless this user or root owns what is above a directory, or a link on the way to it."""
    owner = above.lstat().st_uid
    if owner not in (os.geteuid(), 0, Path(above.anchor).lstat().st_uid):
        raise _refused(directory, f"{above} belongs to another user (uid {owner}), who can replace what is in it")


def _others_may_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(group: int) -> bool:
    """Is nobody but this user in this group? Many systems give each user a group of the same name."""
    import grp  # noqa: PLC0415 - not on Windows
    import pwd  # noqa: PLC0415

    if group == 0:
        return True  # root alone, who may do anything
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return entry.gr_name == user and set(entry.gr_mem) <= {user}


def _refused(directory: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"embedded://{directory} cannot be used: {why}; {_REMEDY}")
