"""The client against real servers that the tests started: connecting, and losing the connection."""

from __future__ import annotations

import inspect
import signal
import ssl
import subprocess

import anyio
import pytest
import redis
from redis import exceptions

from streamq.client import Client, OutcomeUnknown, Script
from streamq.errors import ConfigurationError

pytestmark = pytest.mark.anyio
LEGACY = "legacy_responses" not in inspect.signature(redis.Redis).parameters  # redis-py before 8.0

UNKNOWN = "STREAMQ-NO-SUCH"  # a command that no server will ever have


async def test_tcp_and_unix_and_db(plain):
    """The same server over TCP and over a unix socket. Each address has its database and name."""
    async with Client.from_url(f"{plain.tcp}/3", client_name="me") as tcp, Client.from_url(plain.unix) as unix:
        await unix.flushall()
        await tcp.set("a", "b")
        assert await tcp.get("a") == b"b"
        assert await unix.get("a") is None
        assert await unix.command("DBSIZE") == 0
        assert await tcp.client_getname() == "me"
        assert f"127.0.0.1:{plain.port}/3 connected" in repr(tcp)


async def test_missing_database(plain):
    """The message for SELECT out of range names the database."""
    async with Client.from_url(f"{plain.tcp}/9999") as client:
        with pytest.raises(exceptions.ConnectionError, match="refuses database 9999"):
            await client.command("PING")


async def test_no_server_listens(plain):
    """A refused connection names host and port, and no password."""
    process_port = plain.port
    async with Client.from_url("redis://u:secret@127.0.0.1:1") as client:
        with pytest.raises(exceptions.ConnectionError, match=r"127\.0\.0\.1:1: Connection refused") as caught:
            await client.command("PING")
        assert "secret" not in str(caught.value)
    async with Client.from_url(f"redis://does-not-exist.invalid:{process_port}") as client:
        with pytest.raises(exceptions.ConnectionError, match=r"does-not-exist\.invalid"):
            await client.command("PING")
    async with Client.from_url("unix:///does/not/exist") as client:
        with pytest.raises(exceptions.ConnectionError, match=r"/does/not/exist: No such file"):
            await client.command("PING")


async def test_passwords(launch, kind):
    """A password alone, a user with a password, a wrong password, none at all."""
    process = launch(kind, "--requirepass", "s3cret")
    place = f"127.0.0.1:{process.port}"
    async with Client.from_url(f"redis://:s3cret@{place}") as client:
        assert await client.ping()
        await client.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all")
    async with Client.from_url(f"redis://worker:pw@{place}") as client:
        assert await client.acl_whoami() in {"worker", b"worker"}
    for credentials, text in ((":wrong", "refuses the password"), ("worker:wrong", "refuses user 'worker'")):
        async with Client.from_url(f"redis://{credentials}@{place}") as client:
            with pytest.raises(exceptions.AuthenticationError, match=text) as caught:
                await client.ping()
            assert "wrong" not in str(caught.value).lower().replace("wrongpass", "")
    async with Client.from_url(f"redis://s3cret@{place}") as client:  # without the colon before it
        with pytest.raises(exceptions.AuthenticationError, match="refuses the user of the URL") as caught:
            await client.ping()
        assert "s3cret" not in str(caught.value)
    async with Client.from_url(f"redis://{place}") as client:
        with pytest.raises(exceptions.AuthenticationError, match="requires a login"):
            await client.ping()


async def test_password_where_none_is_set(plain):
    """A password for a server without one is an error."""
    async with Client.from_url(plain.tcp.replace("redis://", "redis://:pw@")) as client:
        with pytest.raises(exceptions.AuthenticationError, match="it has no password; leave the password out"):
            await client.ping()


def causes(error):
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def certificate(directory):
    """A self-signed certificate for localhost."""
    key, crt = directory / "key.pem", directory / "crt.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", crt, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return key, crt


async def refusal(url):
    """Return the error of a server that cannot be used at this URL."""
    async with Client.from_url(url, connect_timeout=3) as client:
        with pytest.raises(exceptions.ConnectionError) as caught:
            await client.ping()
    return str(caught.value)


@pytest.mark.slow
async def test_an_error_of_tls_says_what_to_do(launch, tmp_path):
    """An authority that is not known, the certificate of another host, a certificate of the client that is missing."""
    (tmp_path / "other").mkdir()
    (key, crt), (other_key, other) = certificate(tmp_path), certificate(tmp_path / "other")
    files = ("--tls-cert-file", str(crt), "--tls-key-file", str(key), "--tls-ca-cert-file", str(crt))
    try:
        process = launch("redis", *files, "--tls-auth-clients", "yes", tls=True)
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {error}")
    url = f"rediss://localhost:{process.port}"
    assert "verified" in await refusal(url)
    assert (await refusal(url)).endswith(
        "; for TLS, give the certificate of its authority in the URL: ssl_ca_certs=FILE"
    )
    assert (await refusal(f"{url}?ssl_ca_certs={other}")).endswith(
        f"; for TLS, give the certificate of the authority that signed it: ssl_ca_certs={other} has others"
    )
    elsewhere = await refusal(f"rediss://127.0.0.1:{process.port}?ssl_ca_certs={crt}")
    assert elsewhere.endswith(
        "certificate is not valid for '127.0.0.1'; for TLS, write a host in the URL that its certificate names, "
        "or give it a certificate for 127.0.0.1"
    )
    assert (await refusal(f"{url}?ssl_ca_certs={crt}")).endswith(
        "give a certificate of the client in the URL: ssl_certfile=FILE&ssl_keyfile=FILE"
    )
    assert (await refusal(f"{url}?ssl_ca_certs={crt}&ssl_certfile={other}&ssl_keyfile={other_key}")).endswith(
        f"give a certificate of the client that it accepts: ssl_certfile={other} is not"
    )


async def test_a_file_of_tls_that_cannot_be_loaded_is_named_with_its_option(tmp_path):
    """With its path, and what is wrong with it."""
    (tmp_path / "other").mkdir()
    (key, crt), (other_key, _) = certificate(tmp_path), certificate(tmp_path / "other")
    empty = tmp_path / "empty"
    empty.touch()
    for options, words in (
        ("ssl_ca_certs=/no/such", r"ssl_ca_certs='/no/such' of .* cannot be read \(No such file"),
        (f"ssl_certfile=/no/such&ssl_keyfile={key}", r"ssl_certfile='/no/such' of .* cannot be read"),
        (f"ssl_certfile={crt}&ssl_keyfile=/no/such", r"ssl_keyfile='/no/such' of .* cannot be read"),
        (f"ssl_ca_certs={empty}", r"ssl_ca_certs='.*empty' of .* has no certificates"),
        (f"ssl_certfile={crt}", r"ssl_certfile='.*' of .* has no certificate with its private key: give ssl_"),
        (f"ssl_certfile={crt}&ssl_keyfile={other_key}", r"ssl_certfile='.*', ssl_keyfile='.*' of .* cannot be used"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Client.from_url(f"rediss://localhost?{options}")


@pytest.mark.slow
async def test_tls(launch, tmp_path):
    """Certificates are verified unless the address turns that off. A client without TLS gets an error."""
    key, crt = certificate(tmp_path)
    files = ("--tls-cert-file", str(key.parent / "crt.pem"), "--tls-key-file", str(key), "--tls-ca-cert-file", str(crt))
    try:
        process = launch("redis", *files, "--tls-auth-clients", "optional", tls=True)
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {error}")
    place = f"localhost:{process.port}"
    for url in (
        f"rediss://{place}/1?ssl_ca_certs={crt}",
        f"valkeys://{place}?ssl_ca_certs={crt}&ssl_certfile={crt}&ssl_keyfile={key}",
        f"rediss://127.0.0.1:{process.port}?ssl_ca_certs={crt}&ssl_check_hostname=false",
        f"rediss://{place}?ssl_cert_reqs=none",
        f"rediss://{place}?ssl_ca_certs={crt}&ssl_cert_reqs=optional",
    ):
        async with Client.from_url(url) as client:
            assert await client.ping(), url
            big = b"x" * 300_000
            await client.set("big", big)
            assert await client.get("big") == big
            async with client.blocking() as blocking:
                assert await blocking.read(("BLPOP", "none", 0.01), block=0.01, on_late_reply=print) is None
    for url, cause in (
        (f"rediss://{place}", ssl.SSLCertVerificationError),
        (f"rediss://127.0.0.1:{process.port}?ssl_ca_certs={crt}", ssl.SSLCertVerificationError),
        (f"rediss://127.0.0.1:{process.port}?ssl_ca_certs={crt}&ssl_cert_reqs=optional", ssl.SSLCertVerificationError),
        (f"redis://{place}", None),  # an alert of TLS is no reply, and what follows differs
    ):
        async with Client.from_url(url, connect_timeout=2) as client:
            with pytest.raises(exceptions.ConnectionError, match=str(process.port)) as caught:
                await client.ping()
            assert cause is None or any(isinstance(error, cause) for error in causes(caught.value))
            assert ("it speaks TLS: write rediss:// in place of redis://" in str(caught.value)) == (cause is None)


async def test_a_server_without_tls(plain):
    """Redis waits for the end of a line that never comes; the error says what to write all the same."""
    async with Client.from_url(f"rediss://localhost:{plain.port}", connect_timeout=1.0) as client:
        with pytest.raises(
            exceptions.ConnectionError, match="does not speak TLS: write redis:// in place of rediss://"
        ):
            await client.ping()


async def test_a_server_that_says_nothing_is_not_told_to_speak_otherwise():
    """It may be overloaded, or no Redis at all."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener:
        for scheme in ("redis", "rediss"):
            async with Client.from_url(f"{scheme}://127.0.0.1:{port}", connect_timeout=0.2) as client:
                with pytest.raises(exceptions.ConnectionError) as caught:
                    await client.ping()
                assert str(caught.value) == f"no connection to 127.0.0.1:{port} within 0.2 s"


async def test_scripts_survive_script_flush(plain):
    """EVALSHA of a registered script works on a server that does not know it, in every way to send it."""
    script = Script("return {KEYS[1], ARGV[1]}")
    async with Client.from_url(plain.unix) as client:
        for _ in range(2):
            await client.script_flush()
            assert await client.command(*script.command(["k"], ["a"])) == [b"k", b"a"]
            await client.script_flush()
            replies = await client.call([("PING",), script.command(["k"], [1]), script.command(["l"], [2]), (UNKNOWN,)])
            assert replies[:3] == [b"PONG", [b"k", b"1"], [b"l", b"2"]]
            assert isinstance(replies[3], exceptions.ResponseError)
            await client.script_flush()
            assert await client.evalsha(script.sha, 1, "k", "a") == [b"k", b"a"]
            for transaction in (True, False):
                await client.script_flush()
                pipe = client.pipeline(transaction=transaction)
                pipe.evalsha(script.sha, 1, "k", "a")
                assert await pipe.execute() == [[b"k", b"a"]]
        with pytest.raises(exceptions.NoScriptError):
            await client.evalsha("0" * 40, 0)
        assert client.register_script(script.source).sha == script.sha


async def test_command_methods_of_redis_py(plain):
    """redis-py's methods work as documented: split words, callbacks, options."""
    async with Client.from_url(plain.unix) as client:
        await client.flushall()
        assert await client.xgroup_create("s", "g", id="0", mkstream=True) is True
        entry = await client.xadd("s", {"f": "v"})
        read = await client.xreadgroup("g", "me", {"s": ">"})
        assert (dict(read) if LEGACY else read) == {b"s": [(entry, {b"f": b"v"})]}
        assert (await client.xpending("s", "g"))["pending"] == 1
        assert (await client.xautoclaim("s", "g", "me", 0, "0-0"))[1] == [(entry, {b"f": b"v"})]
        assert (await client.xinfo_groups("s"))[0]["pending"] == 1
        assert await client.zadd("z", {"a": 1.5}) == 1
        assert await client.zrange("z", 0, -1, withscores=True) == [(b"a", 1.5) if LEGACY else [b"a", 1.5]]
        assert [name async for name in client.scan_iter("z*")] == [b"z"]
        assert (await client.config_get("maxmemory"))["maxmemory"] == "0"
        assert (await client.call([("GET", "z")]))[0].status_code == "WRONGTYPE"
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            await client.get("z")
    async with Client.from_url(plain.unix, decode_responses=True) as client:
        assert await client.xrange("s") == [(entry.decode(), {"f": "v"})]
        assert await client.command("TYPE", "s") == b"stream"
        assert (await client.pipeline().hgetall("none").execute()) == [{}]


async def test_pipelines(plain):
    """Replies come in order. The first error is raised and names its command, or is in the list."""
    async with Client.from_url(plain.unix) as client:
        await client.flushall()
        for transaction in (True, False):
            pipe = client.pipeline(transaction=transaction)
            pipe.set("a", "1").incr("a").lpush("a", "x").get("a")
            assert len(pipe) == 4
            replies = await pipe.execute(raise_on_error=False)
            assert (replies[0], replies[1], replies[3]) == (True, 2, b"2")
            assert isinstance(replies[2], exceptions.ResponseError)
            assert await pipe.execute() == []
            with pytest.raises(exceptions.ResponseError, match=r"command 1 \(LPUSH a x\).*WRONGTYPE"):
                await client.pipeline(transaction=transaction).lpush("a", "x").execute()
        async with client.pipeline() as pipe:
            await pipe.set("a", "never")
            await pipe.execute_command(UNKNOWN)
            with pytest.raises(exceptions.ResponseError, match=rf"command 2 \({UNKNOWN}\) of the pipeline"):
                await pipe.execute()
        assert await client.get("a") == b"2"
        assert await client.call([("MULTI",), ("INCR", "a"), ("EXEC",)]) == [b"OK", b"QUEUED", [3]]


async def test_server_features(plain, kind):
    """The server is asked for its product, version and commands once per connection."""
    async with Client.from_url(plain.unix) as client:
        features = await client.server_features()
        assert features.product == kind
        assert features.at_least(kind, 6, 2)
        assert not features.at_least(kind, 99)
        assert not features.at_least("other", 1)
        assert features.has("xautoclaim")
        assert features.has("XADD")
        assert not features.has(UNKNOWN)
        assert await client.server_features() is features
        await client.reset()
        assert await client.server_features() is not features
        await client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+xadd")
    async with Client.from_url(plain.unix.replace("//", "//poor:pw@", 1)) as client:
        features = await client.server_features()
        assert features.commands == frozenset()
        assert not features.has("XADD")


async def test_client_kill(plain):
    """A connection killed while idle is replaced, and no caller gets an error."""
    async with Client.from_url(plain.unix) as client, Client.from_url(plain.unix) as killer:
        for _ in range(5):
            identity = await client.command("CLIENT", "ID")
            await killer.command("CLIENT", "KILL", "ID", identity)
            with anyio.fail_after(2):
                while "connected" in repr(client):
                    await anyio.sleep(0.001)
                assert await client.ping()


async def test_kill_and_restart(launch, kind):
    """Callers wait for a server that restarts. A caller whose command was sent gets OutcomeUnknown."""
    process = launch(kind)
    async with Client.from_url(process.unix) as client:
        await client.ping()
        process.signal(signal.SIGSTOP)
        outcomes = []

        async def caller():
            try:
                outcomes.append(await client.command("ECHO", "x"))
            except exceptions.ConnectionError as error:
                outcomes.append(type(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await anyio.sleep(0.02)
            process.kill()
            await anyio.sleep(0.02)
            tasks.start_soon(caller)
            await anyio.sleep(0.1)
            assert "backing off" in repr(client) or "connecting" in repr(client)
            await anyio.to_thread.run_sync(process.start)
        assert outcomes == [OutcomeUnknown, b"x"]


@pytest.mark.slow
async def test_stopped_server(launch, kind):
    """A server that hangs raises an error in every caller after the reply timeout."""
    process = launch(kind)
    async with Client.from_url(process.unix, reply_timeout=0.6, connect_timeout=0.6) as client:
        await client.ping()
        process.signal(signal.SIGSTOP)
        try:
            with anyio.fail_after(5), pytest.raises(OutcomeUnknown, match=r"no reply within 0\.6 s"):
                await client.ping()
            with anyio.fail_after(5), pytest.raises(exceptions.ConnectionError) as caught:
                await client.ping()  # the kernel accepts, the server does not answer
            assert not isinstance(caught.value, OutcomeUnknown)
        finally:
            process.signal(signal.SIGCONT)
        assert await client.ping()


async def test_big_replies_and_many_callers(plain):
    """Large and small replies, interleaved, reach their callers."""
    async with Client.from_url(plain.unix) as client:
        checked = []

        async def caller(number):
            value = b"%d " % number * (1 << number % 18)
            assert await client.command("ECHO", value) == value
            checked.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(72):
                tasks.start_soon(caller, number)
        assert len(checked) == 72


async def test_readonly_replica(plain):
    """A master that became a replica: READONLY is raised, and the connection is given up."""
    async with Client.from_url(plain.unix) as client:
        first = await client.command("CLIENT", "ID")
        await client.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(exceptions.ReadOnlyError):
                await client.set("a", 1)
        finally:
            await client.replicaof("NO", "ONE")
        assert await client.command("CLIENT", "ID") != first
        assert await client.set("a", 1)


SHARED = [
    "MULTI", "exec", "Select 1", "select 1", "HELLO 3", "subscribe x", "quit", "BLPOP k 1", "blpop k 1", "WAIT 1 100",
    "waitaof 0 0 100", "XREAD BLOCK 100 STREAMS k 0", "xread block 100 streams k 0", "CLIENT REPLY OFF",
    "client reply off", "auth x", "reset", "monitor",
]  # fmt: skip


@pytest.mark.parametrize("text", SHARED)
async def test_a_command_that_would_disturb_other_callers_is_not_sent(plain, text):
    """In any case, in words and in one; what others send meanwhile is answered as ever."""
    words = text.split()
    async with Client.from_url(plain.unix) as client:
        ways = [lambda: client.command(*words), lambda: client.command(*map(str.encode, words)),
                lambda: client.execute_command(*words)]  # fmt: skip
        if len(words) == 1 or words[0].lower() in ("select", "subscribe", "auth"):
            ways += [lambda: client.call([words, ("PING",)])] * (words[0].lower() not in ("multi", "exec"))
        for way in ways:
            with pytest.raises(exceptions.DataError, match="cannot be sent on a connection that many callers share"):
                await way()
        assert await client.command("ECHO", "here") == b"here"
