"""What is sent first on a connection, what the replies mean, and why there is no connection, or no more, in words.

No I/O: `connection` and `sync_connection` send it.
"""

from __future__ import annotations

import os
import shlex
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

import anyio
from redis import exceptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamq.client.address import Address
    from streamq.client.resp_codec import Command

# After an error with one of these codes the connection is of no more use: the server became a
# replica, or it has forgotten our login.
RECONNECT_CODES: Final = ("READONLY", "UNBLOCKED", "NOAUTH")
FAILURES_COUNTED: Final = 64  # redis-py's backoff raises 2 to this power, which must stay a float


class RefusedAddressError(exceptions.ConnectionError):
    """Raised if the server has no such database, or is no Redis or Valkey server: to wait is no use."""


class RefusedDatabaseError(RefusedAddressError):
    """Raised if the user may not choose the database of the address: it lacks the right to SELECT."""


def handshake_commands(address: Address, client_name: str | None) -> list[Command]:
    """Return what is sent first on a connection. The last two are CLIENT ID and PING."""
    commands: list[Command] = []
    if address.username is not None:
        commands.append(("AUTH", address.username, address.password or ""))
    elif address.password is not None:
        commands.append(("AUTH", address.password))
    if address.db:
        commands.append(("SELECT", address.db))
    if client_name:
        commands.append(("CLIENT", "SETNAME", client_name))
    if address.username is None:  # a right to it cannot be given before Redis 7.2, which has no such command
        commands.append(("CLIENT", "SETINFO", "LIB-NAME", "streamq"))
    commands.append(("CLIENT", "ID"))
    commands.append(("PING",))  # refused while the server loads its data, unlike the others
    return commands


def check_handshake(address: Address, commands: Sequence[Command], replies: Sequence[Any]) -> None:
    """Raise for the first error reply that makes the connection unusable."""
    place = address.place
    for command, reply in zip(commands, replies, strict=True):
        if not isinstance(reply, Exception):
            continue
        name = command[0]
        if isinstance(reply, exceptions.BusyLoadingError | exceptions.MasterDownError):
            raise exceptions.BusyLoadingError(f"{place} is not ready: {reply}")
        if name == "AUTH":
            who = f"user {address.shown_user!r}" if address.shown_user else "the password"
            if address.username and not address.password:
                who = "the user of the URL (not shown: without a password after it, it may be the password)"
            raise _login_refused(address, f"refuses {who}", reply)
        if isinstance(reply, exceptions.AuthenticationError):
            raise _login_refused(address, "requires a login", reply)
        # MISCONF: the server cannot write to its disk. It refuses PING like a write, but still serves reads.
        harmless = isinstance(reply, exceptions.NoPermissionError) or str(reply).startswith("MISCONF")
        refused = name == "PING" and not harmless
        if name == "SELECT" and isinstance(reply, exceptions.NoPermissionError):
            raise _database_refused(address, reply)
        if name == "SELECT":
            raise RefusedAddressError(
                f"{place} refuses database {address.db}: {str(reply).strip().rstrip('.')}; give one that it "
                "has, or none, at the end of the URL (redis-cli CONFIG GET databases)"
            )
        if refused or isinstance(reply, exceptions.ConnectionError):
            raise exceptions.ConnectionError(f"no connection to {place}: {reply}")


def _database_refused(address: Address, reply: Exception) -> RefusedDatabaseError:
    """Return the error of a user that lacks the right to SELECT, with the right, and what gives it."""
    # The server has taken the login, so the user is one.
    user, why = address.username or "default", str(reply).strip().rstrip(".").removeprefix("NOPERM ")
    return RefusedDatabaseError(
        f"the user {user!r} may not choose database {address.db} of {address.place} (NOPERM {why}): it lacks the right "
        f"+select; {shlex.join(('redis-cli', 'ACL', 'SETUSER', user, '+select'))}, or rules by 'streamq acl' with "
        f"--url redis://localhost/{address.db}"
    )


def _login_refused(address: Address, what: str, reply: Exception) -> exceptions.AuthenticationError:
    """Return the error of a login, with what to write: in the scheme of the address, for its place."""
    begin, end = f"{address.scheme}://", f"@{address.place}"
    if "without any password configured" in str(reply) or "no password is set" in str(reply):
        return exceptions.AuthenticationError(
            f"{address.place} {what}: it has no password; leave the password out of the URL: {begin}{address.place}"
        )
    return exceptions.AuthenticationError(
        f"{address.place} {what}: {str(reply).rstrip('.')}; write the user and the password into the URL: "
        f"{begin}user:password{end}, or {begin}:password{end} if the server has one password for all (requirepass)"
    )


def root_cause(error: BaseException) -> BaseException:
    """Return the error below anyio's 'All connection attempts failed'."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error


def text_of(error: BaseException) -> str:
    """Return why there is no connection, in words that are the same on every system and backend."""
    match error:
        case anyio.EndOfStream():
            return "the server closed the connection"
        case ssl.SSLCertVerificationError(verify_message=str(why)):
            return f"the certificate of the server cannot be verified: {why.rstrip('.')}"
        case ssl.SSLError() | socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)  # error.strerror has the text of asyncio or trio
        case _:
            return str(error) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return why a connection was lost, as a part of a sentence."""
    match error:
        case anyio.EndOfStream():
            return "the server closed it"
        case anyio.BrokenResourceError() if error.__cause__ is not None:
            return str(error.__cause__) or "it broke"
        case _:
            return str(error) or type(error).__name__
