"""What all commands share: the options that select a server and its queue, and the broker that they make.

They come from the command line, from the broker of an app (`app.py`), or from variables, in this order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import click

from streamq.cli.app import APP, broker_with, load_app, project_app
from streamq.cli.options import modules, tier_names
from streamq.cli.usage_errors import CommandLineError

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.cli.loading import Loaded
    from streamq.wire.signing import SigningKeys

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL: Final = "redis://localhost:6379"
SERVER_OPTIONS: Final = ("url", "namespace", "group", "queue", "tiers", "signing_keys", "sign_with", "accept_unsigned")
URL: Final = "STREAMQ_URL"
SIGNING_OPTIONS: Final = SERVER_OPTIONS[5:]
TIERS: Final = "STREAMQ_TIERS"  # the variable with the names of the tiers; those of a worker are in its modules
SIGNING_KEYS: Final = "STREAMQ_SIGNING_KEYS"  # the variable with the keys: a command line can be read by others
SIGNING_KEYS_FILE: Final = "STREAMQ_SIGNING_KEYS_FILE"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options that select a server and its keys. None stands for an option that was not given.

    `app` are modules whose broker has the queue, and `app_folder` is that of the project that names them. `explicit`
    are the names of the options that stand on the command line: they go before the broker of an app, and that goes
    before variables and defaults.
    """

    url: str | None = None
    namespace: str | None = None
    group: str | None = None
    queue: str | None = None
    tiers: list[str] | None = None
    signing_keys: str | None = None
    sign_with: str | None = None
    accept_unsigned: bool = False
    app: tuple[str, ...] = ()
    app_folder: str | None = None
    explicit: tuple[str, ...] = ()

    @classmethod
    def take(cls, given: dict[str, Any], *, has_app: bool = True) -> Self:
        """Return the options of the command that runs, and take them out of its parameters.

        Raises CommandLineError if the project names an app, and not as it should.
        """
        context, command_line = click.get_current_context(), click.core.ParameterSource.COMMANDLINE
        explicit = tuple(name for name in SERVER_OPTIONS if context.get_parameter_source(name) is command_line)
        values: dict[str, Any] = {name: given.pop(name) for name in SERVER_OPTIONS if name in given}
        app, folder = tuple(given.pop("app", None) or ()), None
        if has_app and not app and set(explicit) <= set(SIGNING_OPTIONS):
            app, folder = project_app()
        return cls(**values, app=app, app_folder=folder, explicit=explicit)

    def wants_signing(self) -> bool:
        """Are there signing keys for this command? Raises CommandLineError if what should have them is empty."""
        given = os.environ.get(SIGNING_KEYS)
        for name, value in (
            (SIGNING_KEYS, given), (SIGNING_KEYS_FILE, os.environ.get(SIGNING_KEYS_FILE)),
            ("--signing-keys", self.signing_keys),
        ):  # fmt: skip
            if value is not None and not value.strip():  # a secret that is not there must not turn signing off
                remedy = "leave the option out" if name.startswith("-") else "unset it"
                raise CommandLineError(f"{name} is empty: give signing keys, or {remedy} to work without")
        if given is not None and self.signing_keys is not None:
            raise CommandLineError(
                f"signing keys are given twice: {SIGNING_KEYS}, and the file {self.signing_keys} (--signing-keys or "
                f"{SIGNING_KEYS_FILE}): give one of the two"
            )
        return given is not None or self.signing_keys is not None

    def signing(self) -> SigningKeys | None:
        """Return the signing keys of the file or of the environment, None if there are none.

        Raises CommandLineError, which shows no key, if they cannot be used.
        """
        from streamq.errors import StreamqError  # noqa: PLC0415 - keeps --help light
        from streamq.wire.signing import SigningKeys  # noqa: PLC0415

        if not self.wants_signing():
            if self.sign_with is not None or self.accept_unsigned:
                option = "--accept-unsigned" if self.sign_with is None else "--sign-with"
                raise CommandLineError(
                    f"{option} without signing keys: give --signing-keys FILE, or set {SIGNING_KEYS}"
                )
            return None
        where = self.signing_keys or SIGNING_KEYS
        try:
            text = _read_keys(self.signing_keys) if self.signing_keys else os.environ[SIGNING_KEYS]
            return SigningKeys.parse(text, sign_with=self.sign_with, accept_unsigned=self.accept_unsigned)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CommandLineError(f"the signing keys in {where} cannot be read: {why}") from None
        except StreamqError as error:
            raise CommandLineError(f"{where}: {error}") from None

    def loaded_app(self) -> Loaded | None:
        """Import the app, and return its content; None without one. Raises CommandLineError if it cannot be used."""
        if not self.app:
            return None
        self.check_url()  # before: what a module does with such a URL may raise an error that quotes its password
        return load_app(self.app, self.app_folder)

    def broker(self) -> RedisBroker:
        """Return a broker for these options, or that of the app. Raises CommandLineError if one cannot be used."""
        from streamq.errors import StreamqError  # noqa: PLC0415 - keeps --help light
        from streamq.wire.command_line import name_by_app  # noqa: PLC0415

        loaded = self.loaded_app()
        try:
            if loaded is None or loaded.broker is None:
                name_by_app(None)
                return self._own_broker()
            broker = self._broker_of_app(loaded.broker, loaded.broker_path)
            name_by_app(None if "url" in self.explicit else broker.keys, *self._app_words())
            return broker
        except StreamqError as error:
            raise CommandLineError(str(error)) from error

    def _own_broker(self) -> RedisBroker:
        self.check_url()
        from streamq.broker import RedisBroker  # noqa: PLC0415 - keeps --help light
        from streamq.wire.tiers import Tier  # noqa: PLC0415

        if self.queue is not None and self.tiers is not None:
            raise CommandLineError(f"--queue {self.queue} and --tiers: a single stream has no tiers; give one of them")
        given = {"queue_name": self.queue, "namespace": self.namespace, "group": self.group}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.has_own_tiers():  # of their thresholds nothing is known: only the names count
            options["tiers"] = [Tier(name, threshold=-place) for place, name in enumerate(self.tiers or ())]
        return RedisBroker(self.url or DEFAULT_URL, **options, signing=self.signing())

    def _broker_of_app(self, broker: RedisBroker, path: str) -> RedisBroker:
        """Return the broker of the app; one like it, if options of the command line go before its own."""
        given = {name: getattr(self, name) for name in self.explicit}
        if {"queue", "tiers"} <= given.keys():
            raise CommandLineError(f"--queue {self.queue} and --tiers: a single stream has no tiers; give one of them")
        if given.keys().isdisjoint(SIGNING_OPTIONS):
            self.check_signed(broker, path)
        if not given:
            return broker
        signing = broker.signing if given.keys().isdisjoint(SIGNING_OPTIONS) else self.signing()
        return broker_with(broker, given, signing=signing)

    def _app_words(self) -> list[str]:
        """Return the options that select the app again, and what goes before it; none if the project names it."""
        given = {name: getattr(self, name) for name in self.explicit if name not in SIGNING_OPTIONS}
        shown = {name: ",".join(value) if name == "tiers" else value for name, value in given.items()}
        app = {} if self.app_folder is not None else {"app": ",".join(self.app)}
        return [word for name, value in (app | shown).items() for word in (f"--{name}", value)]

    def check_signed(self, broker: RedisBroker, path: str) -> None:
        """Raise CommandLineError if there are signing keys, and the broker of a module has none."""
        if self.wants_signing() and broker.signing is None:
            raise CommandLineError(
                f"there are signing keys, and {path} has none: give it signing=SigningKeys(...), or it runs what "
                "nobody signed"
            )

    def has_own_tiers(self) -> bool:
        """Are there names of tiers other than those that a queue has by default?"""
        from streamq.wire.tiers import DEFAULT_TIERS  # noqa: PLC0415 - keeps --help light

        return self.tiers is not None and set(self.tiers) != {tier.name for tier in DEFAULT_TIERS}

    def lasting_broker(self) -> RedisBroker:
        """Return a broker whose server outlives this command. Raises CommandLineError for `memory://`."""
        broker = self.broker()
        if broker.url.startswith("memory:"):
            raise CommandLineError(
                f"{broker.url} is a server inside this command and ends with it: give the URL of a server, or "
                "embedded:///path/to/data"
            )
        return broker

    def names_tiers(self) -> bool:
        """Are there tiers of which nothing is known but their names?"""
        loaded = self.loaded_app()
        known = loaded is not None and loaded.broker is not None and "tiers" not in self.explicit
        return self.has_own_tiers() and not known

    def check_url(self) -> None:
        """Raise CommandLineError if the URL is empty: a variable that failed to be set is no wish for localhost."""
        if not (self.url if self.url is not None else os.environ.get(URL, DEFAULT_URL)):
            option = URL if self.url is None else "--url"
            raise CommandLineError(f"{option} is empty: give the URL of a server, or leave it out for {DEFAULT_URL}")


def _read_keys(path: str) -> str:
    """Return the text of a key file. Raises CommandLineError if others may change it, warns if all may read it."""
    with Path(path).open(encoding="utf-8") as file:
        mode = os.fstat(file.fileno()).st_mode if os.name == "posix" else 0
        if mode & 0o022:
            raise CommandLineError(f"others may write the signing keys in {path}: chmod 600 {path}")
        if mode & 0o004:
            from streamq.cli import output  # noqa: PLC0415 - keeps --help light

            output.note(f"streamq: warning: all users may read the signing keys in {path}: chmod 600 {path}")
        return file.read(1 << 20)


def _unless_the_other(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the value of `--tiers` or `--queue`, None if a variable has it and the other is on the command line."""
    sources = click.core.ParameterSource
    other = "queue" if param.name == "tiers" else "tiers"
    from_variable = ctx.get_parameter_source(param.name or "") is sources.ENVIRONMENT
    return None if from_variable and ctx.get_parameter_source(other) is sources.COMMANDLINE else value


def server_options(function: F) -> F:
    """Add `--app` and the options of `SERVER_OPTIONS`. Their environment variables are the same for all commands."""
    return _with_app(_with_names(click.option(
        "--tiers", type=tier_names, metavar="NAME,...", envvar=TIERS, show_envvar=True, callback=_unless_the_other,
        help="Names of the tiers, if they are not critical, standard and bulk.",
    )(_with_signing(function))))  # fmt: skip


def _with_app(function: F) -> F:
    return click.option(
        "--app", type=modules, metavar="MODULE,...", envvar=APP, show_envvar=True,
        help="Modules of the workers, such as app.tasks: use the server, namespace, tiers and group of their broker. "
        "Other options go before it. [default: app of [tool.streamq] in pyproject.toml]",
    )(function)  # fmt: skip


def worker_server_options(function: F) -> F:
    """Add the options of `SERVER_OPTIONS` but `tiers`: the modules of a worker have the tiers, and it serves some."""
    return _with_names(_with_signing(function))


def _with_signing(function: F) -> F:
    function = click.option(
        "--accept-unsigned", is_flag=True, envvar="STREAMQ_ACCEPT_UNSIGNED", show_envvar=True,
        help="Run messages without a signature as well, while signing is introduced.",
    )(function)  # fmt: skip
    function = click.option(
        "--sign-with", metavar="ID", envvar="STREAMQ_SIGN_WITH", show_envvar=True,
        help="Id of the key that signs, if there are several.",
    )(function)  # fmt: skip
    return click.option(
        "--signing-keys", metavar="FILE", envvar=SIGNING_KEYS_FILE, show_envvar=True,
        help=f"File of signing keys, one a line: ID=HEX. Or set {SIGNING_KEYS} to the keys themselves.",
    )(function)  # fmt: skip


def _with_names(function: F) -> F:
    for name, metavar, text in reversed((
        ("url", "URL", f"Server URL: redis, rediss, valkey, unix or embedded:///path. [default: {DEFAULT_URL}]"),
        ("namespace", "PREFIX", "Prefix of all keys. [default: queue]"),
        ("group", "NAME", "Consumer group. [default: workers]"),
        ("queue", "STREAM", "Use this one stream instead of tiers, for example queue:critical."),
    )):  # fmt: skip
        variable = f"STREAMQ_{name.upper()}"
        callback = _unless_the_other if name == "queue" else None
        function = click.option(
            f"--{name}", metavar=metavar, envvar=variable, show_envvar=True, help=text, callback=callback
        )(function)
    return function
