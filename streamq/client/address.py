"""The address of a server with its credentials: the URL as a frozen value.

This module does no I/O and knows nothing of connections. It shows a password only in the field
`password`: no `repr`, no `str` and no error message has one. A user without a password may be a password that was
written in its place, so it is not shown. A URL that cannot be read may have its password anywhere, so an error shows no
part of it but a scheme, a place and a name of an option that can be nothing else.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import ParseResult, parse_qsl, unquote, urlparse

from streamq.errors import ConfigurationError

Scheme = Literal["redis", "rediss", "unix", "memory"]
CertReqs = Literal["required", "optional", "none"]

_SCHEMES: Final[dict[str, Scheme]] = {
    "redis": "redis",
    "valkey": "redis",
    "rediss": "rediss",
    "valkeys": "rediss",
    "unix": "unix",
}
_CERT_REQS: Final[dict[str, CertReqs]] = {
    "required": "required",
    "optional": "optional",
    "none": "none",
}
_ENCODE: Final = "percent-encode special characters of the password (# is %23, / %2F, ? %3F, @ %40)"
_WHOLE: Final = "user:password@host:6379"
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")
_PLACE: Final = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?|", re.ASCII)
_HOST: Final = re.compile(r"[\w.-]+")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[\w.-]+)?")  # IPv6, with a zone
_LOCAL: Final = re.compile(r"(?:localhost|[0-9]+(?:\.[0-9]+){3}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_CLIENT_NAME: Final = re.compile(r"[!-~]{1,100}")
_SHORTEST: Final = 0.001  # seconds of a timeout, as in wire/bounds.py, which this module may not import
_LONGEST: Final = 1e8
_OPTIONS: Final = (
    "client_name",
    "db",
    "socket_connect_timeout",
    "socket_timeout",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
)
# Options that URLs for redis-py and other clients have. Any other name may be a part of a password, and is not shown.
_OF_OTHERS: Final = frozenset({
    "decode_responses", "encoding", "health_check_interval", "max_connections", "password", "protocol",
    "retry_on_error", "retry_on_timeout", "socket_keepalive", "ssl", "ssl_ca_cert", "ssl_ca_data", "ssl_ca_path",
    "ssl_cert", "ssl_ciphers", "ssl_key", "ssl_min_version", "ssl_password", "timeout", "tls", "username",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """One server: how to reach it, the user and password, and the database.

    `scheme` is `redis` (TCP), `rediss` (TLS), `unix` (the socket at `path`) or `memory` (the
    `Dial` passed to the client opens it). Timeouts are in seconds; with None the client's
    default applies. The `ssl_*` fields have the meaning of redis-py's.
    """

    scheme: Scheme = "redis"
    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    client_name: str | None = None
    connect_timeout: float | None = None
    reply_timeout: float | None = None
    ssl_cert_reqs: CertReqs = "required"
    ssl_check_hostname: bool = True
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL: `redis://`, `rediss://`, `valkey://`, `valkeys://` or `unix://`.

        User, password and path are percent-decoded. The database is the path
        (`redis://host/1`) or the option `?db=1`. Further options are `client_name`,
        `socket_timeout` and `socket_connect_timeout` (seconds), `ssl_cert_reqs`,
        `ssl_check_hostname`, `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`.

        Raises ConfigurationError if the URL cannot be used. The message names the wrong part
        and the remedy, and shows no password.
        """
        if _UNPRINTABLE.search(url):  # urlparse would drop some of them, and read another password
            raise _unusable(url, "it has white space or control characters; percent-encode them")
        try:
            parts = urlparse(url)
            port = parts.port
        except ValueError:  # the text of this error may have the password
            raise _unusable(url, f"its host and port cannot be read; write host:port, and {_ENCODE}") from None
        scheme = _SCHEMES.get(parts.scheme)
        if scheme is None:
            known = ", ".join(f"{name}://" for name in (*_SCHEMES, "memory", "embedded"))
            raise _unusable(url, f"unknown scheme; use one of {known}")
        stray = parts.query if scheme == "unix" else parts.path + parts.query
        if "#" in url or "@" in stray:
            raise _unusable(url, f"it has '#', or '@' after the host; {_ENCODE}")
        if scheme != "unix" and not parts.hostname and parts.netloc:
            raise _unusable(url, f"it has a user, a password or a port, and no host; write {parts.scheme}://{_WHOLE}")
        options = _options(url, parts.query, scheme)
        host = unquote(parts.hostname or "") or "localhost"
        if not (_ADDRESS if "[" in parts.netloc else _HOST).fullmatch(host):
            raise _unusable(url, "its host has characters that no name of a host has")
        return cls(
            scheme=scheme,
            host=host,
            port=port or 6379,
            path=_socket_path(url, parts) if scheme == "unix" else "",
            db=_db(url, options.get("db") or ("" if scheme == "unix" else parts.path.strip("/"))),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            client_name=_client_name(url, options.get("client_name")),
            connect_timeout=_seconds(url, "socket_connect_timeout", options),
            reply_timeout=_seconds(url, "socket_timeout", options),
            ssl_cert_reqs=_cert_reqs(url, options.get("ssl_cert_reqs", "required")),
            ssl_check_hostname=_check_hostname(url, options),
            ssl_ca_certs=options.get("ssl_ca_certs"),
            ssl_certfile=options.get("ssl_certfile"),
            ssl_keyfile=options.get("ssl_keyfile"),
        )

    @property
    def place(self) -> str:
        """Where the server listens: `host:port`, or the path of its socket."""
        if self.scheme == "unix":
            return _printable(self.path)
        if self.scheme == "memory":
            return "memory"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def shown_user(self) -> str:
        """The name of the user; empty if the URL has none, or no password: then the name may be the password."""
        return _printable(self.username or "") if self.password else ""

    def __str__(self) -> str:
        credentials = f"{self.shown_user}:***@" if self.password else "***@" if self.username else ""
        if self.scheme == "memory":
            return f"memory://{self.path}"
        if self.scheme == "unix":
            return f"unix://{credentials}{_printable(self.path)}" + (f"?db={self.db}" if self.db else "")
        return f"{self.scheme}://{credentials}{self.place}/{self.db}"


def _unusable(url: str, reason: str) -> ConfigurationError:
    """Return the error for a URL. It shows no user, password, path or options: they may be secret."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z+]{1,20}", scheme):
        return ConfigurationError(f"not a URL of a server: {reason}")
    place, credentials = re.split(r"[/?#]", rest, maxsplit=1)[0], ""
    if "@" in place:
        place, credentials = place.rpartition("@")[2], "***@"
    if rest.count("@") > bool(credentials) or not _PLACE.fullmatch(place) or _may_be_login(rest):
        place, credentials = "***", ""  # the password may have an unescaped '/' or '@', or stand where the host should
    return ConfigurationError(f"the URL {scheme}://{credentials}{place} cannot be used: {reason}")


def _may_be_login(rest: str) -> bool:
    """May what stands before the first '/' or '?' be a user and the begin of a password: `user:12/rest?of=it`?"""
    place, _, more = re.split(r"([/?])", f"{rest}/", maxsplit=1)
    return bool(more.strip("/")) and ":" in place and "@" not in place and not _LOCAL.fullmatch(place)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _options(url: str, query: str, scheme: Scheme) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, 1, 0.8)
            named = f" {name!r}" * (name in _OF_OTHERS) + (f" (did you mean {near[0]!r}?)" if near else "")
            raise _unusable(url, f"unknown option{named}; known are {', '.join(_OPTIONS)}")
        if name in options:
            raise _unusable(url, f"the option {name!r} is given twice; give it once")
        if name.startswith("ssl_") and scheme != "rediss":
            raise _unusable(url, f"the option {name!r} is for TLS, and this connection has none; write rediss://")
        if not value:
            raise _unusable(url, f"the option {name!r} has no value; give it one or leave it out")
        options[name] = value
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise _unusable(url, "ssl_keyfile needs ssl_certfile, the certificate of that key; give both")
    return options


def _client_name(url: str, text: str | None) -> str | None:
    if text is not None and not _CLIENT_NAME.fullmatch(text):
        raise _unusable(url, "client_name must have 1 to 100 printable ASCII characters, and no space")
    return text


def _socket_path(url: str, parts: ParseResult) -> str:
    path = unquote(parts.path)
    if parts.hostname:
        raise _unusable(url, "the path of a unix socket is absolute; write three slashes, unix:///run/redis.sock")
    if not path.strip("/"):
        raise _unusable(url, "the path of the socket is missing; write unix:///run/redis.sock")
    return path


def _db(url: str, text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _unusable(
            url,
            "the database (after the host, or db=) is not a number; write one from 0 on, as in redis://host:6379/0. "
            f"If that is a part of the password, {_ENCODE}",
        )
    return int(text)


def _seconds(url: str, name: str, options: dict[str, str]) -> float | None:
    text = options.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        bounds = f"{_SHORTEST:g} to {_LONGEST:,.0f}"
        raise _unusable(
            url, f"the value of {name} is not a number of seconds from {bounds}; write for example {name}=5"
        )
    return seconds


def _cert_reqs(url: str, text: str) -> CertReqs:
    value = _CERT_REQS.get(text.lower())
    if value is None:
        raise _unusable(url, "the value of ssl_cert_reqs is unknown; write required, optional or none")
    return value


def _check_hostname(url: str, options: dict[str, str]) -> bool:
    check = _flag(url, "ssl_check_hostname", options.get("ssl_check_hostname", "true"))
    if check and "ssl_check_hostname" in options and options.get("ssl_cert_reqs", "").lower() == "none":
        raise _unusable(url, "ssl_check_hostname=true has no effect with ssl_cert_reqs=none; leave one of them out")
    return check


def _flag(url: str, name: str, text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case _:
            raise _unusable(url, f"the value of {name} is unknown; write true or false")
