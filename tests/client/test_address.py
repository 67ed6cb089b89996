"""URLs of servers: their meaning, and that no password is shown."""

import pytest

from streamq.client import Address, Client
from streamq.client.dial import dial_to
from streamq.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Address()),
        ("redis:///2", Address(db=2)),
        ("rediss://?db=2", Address(scheme="rediss", db=2)),
        ("redis://h", Address(host="h")),
        ("valkey://h:7/2", Address(host="h", port=7, db=2)),
        ("valkeys://h", Address(scheme="rediss", host="h")),
        ("redis://[::1]:7", Address(host="::1", port=7)),
        ("redis://u:p%40%2F@h", Address(host="h", username="u", password="p@/")),
        ("redis://:p@h?db=3", Address(host="h", password="p", db=3)),
        ("unix:///run/r%20s?db=1", Address(scheme="unix", path="/run/r s", db=1)),
        ("unix://u:p@/run/s", Address(scheme="unix", path="/run/s", username="u", password="p")),
        ("rediss://h?ssl_cert_reqs=none", Address(scheme="rediss", host="h", ssl_cert_reqs="none")),
        ("rediss://h?ssl_check_hostname=no", Address(scheme="rediss", host="h", ssl_check_hostname=False)),
        ("redis://h?socket_timeout=2.5&client_name=me", Address(host="h", reply_timeout=2.5, client_name="me")),
    ],
)
def test_parse(url, expected):
    """Each part of a URL is in its field, percent-decoded."""
    parsed = Address.parse(url)
    assert parsed == expected
    if parsed.host != "localhost" and parsed.scheme != "unix":
        assert parsed.place == f"{'[::1]' if ':' in parsed.host else parsed.host}:{parsed.port}"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://u:sec:ret@h/x", "is not a number; write one from 0 on"),
        ("redis://u:secret@h?db=-1", "is not a number; write one from 0 on"),
        ("redis://u:secret@h:port", "percent-encode"),
        ("http://u:secret@h", "unknown scheme"),
        ("redis://u:secret@h?max_connections=5", "max_connections"),
        ("rediss://u:secret@h?ssl_cert=1", "unknown option 'ssl_cert' (did you mean 'ssl_certfile'?)"),
        ("redis://u:secret@h?socket_timeot=1", "did you mean 'socket_timeout'?"),
        ("redis://u:secret@h?socket_timeout=0", "socket_timeout"),
        ("redis://u:secret@h?socket_timeout=nan", "socket_timeout"),
        ("redis://u:se#cret@h", "%23"),
        ("redis://u:secret#@h/1", "%23"),
        ("redis://u:12/secret@h/1", "%2F"),
        ("redis://u:12?secret@h/1", "%3F"),
        ("redis://u:p@12/secret@h/1", "%2F"),
        ("redis://u:secret@h?db=", "no value"),
        ("rediss://u:secret@h?ssl_cert_reqs=maybe", "the value of ssl_cert_reqs is unknown"),
        ("rediss://u:secret@h?ssl_check_hostname=maybe", "the value of ssl_check_hostname is unknown"),
        ("unix://u:secret@host/path", "three slashes"),
        ("unix://", "missing"),
        ("localhost:6379", "unknown scheme"),
        ("secret", "unknown scheme"),
        ("redis://u:secret@[::1", "percent-encode"),
    ],
)
def test_refused(url, named):
    """The error for an unusable URL names the wrong part and the remedy, without the password."""
    with pytest.raises(ConfigurationError) as caught:
        Address.parse(url)
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "sec:ret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["redis", "valkeys"])
@pytest.mark.parametrize("place", ["u:secret@", ":secret@/0", "u:secret@:7/0", "secret@?db=1", ":7", ":@", "@", ":"])
def test_a_login_or_a_port_needs_a_host(scheme, place):
    """A host from a variable that is not set: the password would go to what listens on localhost."""
    with pytest.raises(ConfigurationError, match=f"and no host; write {scheme}://user:password@host:6379") as caught:
        Address.parse(f"{scheme}://{place}")
    assert "secret" not in str(caught.value)


PASSWORD = "hunter2"
ODD = [
    f"redis://u:{PASSWORD}/", f"redis://:{PASSWORD}", f"redis://u:{PASSWORD}/x@h", f"redis://u:{PASSWORD}#x@h",
    f"redis://u:{PASSWORD}?x@h", f"redis://u:{PASSWORD}[@h", f"redis:u:{PASSWORD}@h", f"u:{PASSWORD}@h",
    f"http://u:{PASSWORD}@h/", f" redis://u:{PASSWORD}@h/0", f"redis://u:{PASSWORD}\n@h", f"redis://u:{PASSWORD}\t@h",
    f"redis://u:{PASSWORD}@h:port/", f"redis://u:a@{PASSWORD}/x@h/abc", f"redis://h?password={PASSWORD}",
    f"redis://h?{PASSWORD}", f"redis://h?{PASSWORD}=1", f"redis://u:{PASSWORD}@h?db=x", f"redis://u:{PASSWORD}@h/abc",
    f"redis://u:{PASSWORD}@h?foo=bar", f"unix://u:{PASSWORD}@host/x", f"unix:///?x={PASSWORD}",
    f"redis://u:{PASSWORD}@h?ssl_cert_reqs=none", f"{PASSWORD}://h", PASSWORD, f"redis://u:{PASSWORD}@a%00b",
    f"redis://u:{PASSWORD}@h?client_name=a%20b", f"rediss://u:{PASSWORD}@h?ssl_check_hostname=x",
    f"redis://:12/{PASSWORD}", f"redis://u:1/{PASSWORD}%40h:1", f"redis://{PASSWORD}:1/x", f"redis://h?db={PASSWORD}",
    f"redis://u:12?{PASSWORD}=1", f"redis://u:12?of={PASSWORD}", f"redis://h/?socket_timeout={PASSWORD}",
    f"rediss://h?ssl_cert_reqs={PASSWORD}", f"rediss://h?ssl_check_hostname={PASSWORD}", f"redis://u:12/0?{PASSWORD}",
    f"redis://h?{PASSWORD}_max_connections=1", f"redis://u%3A{PASSWORD}%40h", f"redis://u;{PASSWORD}",
    f"redis://u:{PASSWORD}\x1b[31m@h", f"redis://u:{PASSWORD}\u2028@h:x",
]  # fmt: skip


@pytest.mark.parametrize("url", ODD)
def test_no_error_shows_a_password_wherever_it_stands(url):
    """P13: also without a host, with an unescaped '/', '?', '#' or '@', and in an option."""
    with pytest.raises(ConfigurationError) as caught:
        Address.parse(url)
    text = str(caught.value)
    assert PASSWORD not in text
    assert text.isprintable()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["redis", "valkey", "unix"])
@pytest.mark.parametrize("name", ["ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_options_of_tls_need_tls(scheme, name):
    """Else a URL that looks safe would send its password in the clear."""
    url = f"{scheme}://{'/run/x' if scheme == 'unix' else 'h'}?{name}=none"
    with pytest.raises(ConfigurationError, match=f"'{name}' is for TLS, and this connection has none; write rediss://"):
        Address.parse(url)


@pytest.mark.parametrize(("reqs", "checked"), [("required", True), ("optional", True), ("none", False)])
def test_the_host_is_checked_wherever_the_certificate_is(reqs, checked):
    """With `optional`, the certificate of any other host was believed."""
    for flag, wanted in (("", checked), ("&ssl_check_hostname=false", False)):
        dial = dial_to(Address.parse(f"rediss://h?ssl_cert_reqs={reqs}{flag}"))
        assert dial._context.check_hostname is wanted


@pytest.mark.parametrize(
    ("query", "name"),
    [("ssl_cert_reqs=none&ssl_check_hostname=true", "ssl_check_hostname"), ("ssl_keyfile=/k.pem", "ssl_certfile")],
)
def test_an_option_of_tls_that_would_have_no_effect_is_refused(query, name):
    """A URL must not look safer than it is."""
    with pytest.raises(ConfigurationError, match=name):
        Address.parse(f"rediss://h?{query}")


@pytest.mark.parametrize(
    "query",
    ["client_name=a&client_name=b", "client_name=a%0Ab", "client_name=", "socket_timeout=1e9", "socket_timeout=-1",
     "socket_connect_timeout=x", "retry_on_timeout=1", "protocol=3", "db=99999999999"],
)  # fmt: skip
def test_an_option_that_cannot_be_kept_is_refused_by_name(query):
    with pytest.raises(ConfigurationError, match=query.partition("=")[0] if "db" not in query else "database"):
        Address.parse(f"redis://h?{query}")


def test_no_password_in_repr():
    """Neither the address nor the client shows the password."""
    address = Address.parse("redis://me:secret@h/1")
    client = Client(address)
    assert str(address) == "redis://me:***@h:6379/1"
    assert "secret" not in repr(address) + repr(client)
    assert repr(client) == "<Client redis://me:***@h:6379/1 closed>"


@pytest.mark.parametrize("login", ["hunter2", "hunter2:", "default%3Ahunter2", "default;hunter2"])
@pytest.mark.parametrize("scheme", ["redis", "unix"])
def test_a_user_without_a_password_is_not_shown(scheme, login):
    """It may be the password, written without a colon before it."""
    place = "/run/s" if scheme == "unix" else "h:7/1"
    address = Address.parse(f"{scheme}://{login}@{place}")
    assert "hunter2" in (address.username or "")
    assert str(address) == f"{scheme}://***@{place}"
    assert "hunter2" not in repr(address) + repr(Client(address)) + address.shown_user


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379?max_connections=5", "redis://localhost:6379 cannot"),
        ("redis://[::1]:6379/x", "redis://[::1]:6379 cannot"),
        ("redis://10.0.0.7:6379/x", "redis://10.0.0.7:6379 cannot"),
        ("redis://u:p@redis.internal:6379/x", "redis://***@redis.internal:6379 cannot"),
        ("redis://12:34/x", "redis://*** cannot"),
        ("redis://shop:34/x", "redis://*** cannot"),
    ],
)
def test_the_place_is_shown_where_it_is_one_for_certain(url, shown):
    """`redis://12:34/x` may be a user, and the password `34/x`."""
    with pytest.raises(ConfigurationError) as caught:
        Address.parse(url)
    assert shown in str(caught.value)


def test_certificates_that_cannot_be_loaded():
    """A missing CA file raises when the client is made, not at the first command."""
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        Client.from_url("rediss://h?ssl_ca_certs=/nowhere.pem")
