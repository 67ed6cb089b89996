"""What to do about an error of the server, by its cause: one table for errors, logs, commands and the doctor."""

from __future__ import annotations

from typing import Final

from streamq.client.tls import names_tls_remedy
from streamq.errors import BrokerError, BrokerUnavailableError

START_SERVER: Final = "start a Redis or Valkey server there, or give another address with --url or STREAMQ_URL"
TOO_MANY_CLIENTS: Final = "max number of clients reached"  # what a server says before it closes a new connection
MORE_CLIENTS: Final = "find their programs with redis-cli CLIENT LIST, or redis-cli CONFIG SET maxclients 10000"
LOG_IN: Final = "give user and password in --url or STREAMQ_URL, before the host: user:password@host"
_MORE_WORKERS: Final = "run more workers (streamq worker), or raise the limit: redis-cli CONFIG SET maxmemory"
MORE_MEMORY: Final = (
    f"{_MORE_WORKERS} 4gb (the value is yours to choose, above the present one: redis-cli CONFIG GET maxmemory)"
)
WRITABLE_DISK: Final = "look for errors such as 'No space left' in the server's log; redis-cli INFO persistence"
MORE_REPLICAS: Final = "start the replicas, or redis-cli CONFIG SET min-replicas-to-write 0"
NOT_READY: Final = " is not ready: "  # in the error of a connection to a server that loads its data
LOADED: Final = "wait until it has loaded its data, and run this again"
KEY_OF_OTHERS: Final = "another program uses that name: rename its key, or choose another namespace"
LOGIN_NAMED: Final = (  # in the error of a login, from the client
    "; write the user and the password into the URL", "; leave the password out of the URL",
)  # fmt: skip
_GIVE_IT: Final = "give it with --url or STREAMQ_URL"
_OF_SERVER: Final = {
    "READONLY": "it is a replica: give the address of its primary",
    "OOM": MORE_MEMORY,
    "MISCONF": WRITABLE_DISK,
    "NOREPLICAS": MORE_REPLICAS,
    "WRONGTYPE": KEY_OF_OTHERS,
    "BUSY": "wait until its script has ended, or end it with redis-cli SCRIPT KILL",
    "MOVED": "it is a node of a cluster, and another node has these keys: give its address, and keep the keys of a "
    "namespace in one slot with --namespace '{queue}'",
    "CLUSTERDOWN": "wait until the cluster has all its slots; redis-cli CLUSTER INFO",
}
_OF_COMMAND: Final = {"NOAUTH": LOG_IN, "WRONGPASS": LOG_IN, "LOADING": LOADED, "MASTERDOWN": LOADED}


def advised(text: str, code: str) -> str:
    """Return the text of an error with what to do about the server, once; as it is if that is not known.

    A missing right (NOPERM) is not in the table: `queue/missing_right.py` has what to do about it.
    """
    remedy = _OF_SERVER.get(code, "")
    return f"{text.rstrip('.')}; {remedy}" if remedy and remedy not in text else text


def remedy_of(error: BrokerError) -> str:
    """Return what to do about an error of a command line; empty if its text says it, or if that is not known."""
    text = str(error)
    if TOO_MANY_CLIENTS in text:
        return MORE_CLIENTS
    if isinstance(error, BrokerUnavailableError):
        if NOT_READY in text:
            return LOADED
        return "" if names_tls_remedy(text) else START_SERVER
    if any(named in text for named in LOGIN_NAMED):
        return _GIVE_IT
    remedy = {**_OF_SERVER, **_OF_COMMAND}.get(error.code, "")
    return "" if remedy in text else remedy


def more_memory(limit: int, used: int) -> str:
    """Return what to do about a server that is full, or nearly: `limit` and `used` are bytes."""
    megabytes = -(-2 * max(limit, used) >> 20)
    return f"{_MORE_WORKERS} {megabytes}mb (twice as much: the value is yours to choose, as the machine has memory)"


def parted_login(error: BrokerError) -> tuple[str, str]:
    """Return the error of a login without its remedy, and the remedy."""
    for which in LOGIN_NAMED:
        text, named, remedy = str(error).partition(which)
        if named:
            return text, f"{named.removeprefix('; ')}{remedy}; {_GIVE_IT}"
    return str(error), LOG_IN
