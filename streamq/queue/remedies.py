"""What to do about an error of the server, by its cause: one table for the command line and the doctor."""

from __future__ import annotations

from typing import Final

from streamq.client.tls import names_tls_remedy
from streamq.errors import BrokerError, BrokerUnavailableError

START_SERVER: Final = "start a Redis or Valkey server there, or give another address with --url or STREAMQ_URL"
LOG_IN: Final = "give user and password in --url or STREAMQ_URL: redis://user:password@host:6379"
MORE_MEMORY: Final = "run more workers (streamq worker), or raise the limit with redis-cli CONFIG SET maxmemory"
WRITABLE_DISK: Final = "look for errors such as 'No space left' in the server's log; redis-cli INFO persistence"
MORE_REPLICAS: Final = "start the replicas, or redis-cli CONFIG SET min-replicas-to-write 0"
LOADED: Final = "wait until it has loaded its data, and run this again"
_LOG_IN_NAMED: Final = "; write user and password into the URL"  # the client says it
_KEY_NAMED: Final = "; rename that key, or choose another namespace"  # `Store.ensure_groups` says it
_BY_CODE: Final = {
    "NOAUTH": LOG_IN,
    "WRONGPASS": LOG_IN,
    "LOADING": LOADED,
    "MASTERDOWN": LOADED,
    "BUSY": "wait until its script has ended, or end it with redis-cli SCRIPT KILL",
    "CLUSTERDOWN": "wait until the cluster has all its slots; redis-cli CLUSTER INFO",
    "READONLY": "it is a replica: give the address of its primary with --url or STREAMQ_URL",
    "OOM": MORE_MEMORY,
    "MISCONF": WRITABLE_DISK,
    "NOREPLICAS": MORE_REPLICAS,
    "WRONGTYPE": "another program uses a key of this name: choose another --namespace",
}


def remedy_of(error: BrokerError) -> str:
    """Return what to do about an error; empty if its text says it, or if that is not known.

    A missing right (NOPERM) is not in the table: `queue/missing_right.py` has what to do about it.
    """
    text = str(error)
    if isinstance(error, BrokerUnavailableError):
        return "" if names_tls_remedy(text) else START_SERVER
    if _LOG_IN_NAMED in text:
        return "give it with --url or STREAMQ_URL"
    return "" if _KEY_NAMED in text else _BY_CODE.get(error.code, "")
