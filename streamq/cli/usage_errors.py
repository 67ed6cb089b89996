"""Usage errors: one line that says what is wrong and what to do, and exit code 2.

Each command turns other errors into a `CommandLineError`. Their text never contains a password, because
the errors of streamq contain none.
"""

from __future__ import annotations

import re
from typing import IO, Any

import click

USAGE = 2  # the exit code of every usage error
FAILED = 1  # something was passed over, was not found, or went wrong in streamq
INTERRUPTED = 130  # as shells report a program that Ctrl-C ended

_DASHED_NUMBER = re.compile(r"-[\d.]")  # what looks like an option to click, and was meant as an argument

_LOGIN = re.compile(r"((?:[a-z][a-z+.-]*:)?//)([^\s'\"]*)@")
_MEANT = ("user:password", ":password")  # what a remedy says


def _without_login(found: re.Match[str]) -> str:
    return found[0] if found[2] in _MEANT else f"{found[1]}***@"


class CommandLineError(click.ClickException):
    """An error that the user can fix. `message` names the remedy."""

    exit_code = USAGE

    def format_message(self) -> str:
        """Return the message as one line, without the login of a URL that stands in the wrong place."""
        return _LOGIN.sub(_without_login, " ".join(self.message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message to stderr."""
        from streamq.cli import output  # noqa: PLC0415 - keeps --help light

        output.note(f"streamq: error: {self.format_message()}", file=file)


class RefusedError(CommandLineError):
    """What was asked for would do no good, and is not done. `message` names the option that does it all the same."""

    exit_code = FAILED


def from_click_error(error: click.ClickException) -> CommandLineError:
    """Return an error of click, such as a wrong option, as one line that names the command's help."""
    if isinstance(error, CommandLineError):
        return error
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "streamq"
    if isinstance(error, click.NoSuchOption) and _DASHED_NUMBER.match(error.option_name):
        return CommandLineError(
            f"no such option: {error.option_name}; write -- before arguments that begin with a dash"
        )
    if isinstance(error, click.NoSuchOption) and context is not None and _has(context.command, error.option_name):
        return CommandLineError(
            f"options come after the command: write {path} COMMAND {error.option_name} ... (see '{path} --help')"
        )
    if isinstance(error, click.NoSuchOption) and path == "streamq worker" and error.option_name in ("--app", "-A"):
        return CommandLineError(f"a worker has its modules as arguments: write {path} MODULE... (see '{path} --help')")
    text = " ".join(error.format_message().split())
    if isinstance(error, click.MissingParameter) and context is not None:
        usage = " ".join([path, *context.command.collect_usage_pieces(context)])
        return CommandLineError(f"{text.rstrip('.')}; write {usage} (see '{path} --help')")
    return CommandLineError(f"{text.rstrip('.')}{_variable(error)} (see '{path} --help')")


def _has(group: click.Command, option: str) -> bool:
    """Has a command of this group such an option?"""
    commands = group.commands.values() if isinstance(group, click.Group) else ()
    return any(_has(one, option) or any(option in param.opts for param in one.params) for one in commands)


def _variable(error: click.ClickException) -> str:
    """Return the environment variable that a wrong value comes from, as a part of a sentence; else nothing."""
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return ""
    name = error.param.name or ""
    if error.ctx.get_parameter_source(name) is not click.core.ParameterSource.ENVIRONMENT:
        return ""
    own = error.param.envvar or f"{error.ctx.auto_envvar_prefix}_{name.upper()}"
    return f", from the variable {own if isinstance(own, str) else own[0]}"


def from_streamq_error(error: Exception) -> CommandLineError:
    """Return an error of streamq about a server or a value, with its remedy."""
    from streamq.errors import BrokerError, OutcomeUnknownError  # noqa: PLC0415 - keeps --help light
    from streamq.queue.remedies import remedy_of  # noqa: PLC0415 - keeps --help light

    text = str(error).rstrip(".") or type(error).__name__
    code = getattr(error, "code", "")
    match error:
        case OutcomeUnknownError():
            return CommandLineError(
                f"{text}; the command may have run: repeat it with the same --task-id, which is safe"
            )
        case _ if code == "NOPERM":
            from streamq.queue.missing_right import with_remedy  # noqa: PLC0415 - keeps --help light

            named = with_remedy(text, code, options=_key_options())
            return CommandLineError(f"{named}; or give another user in --url or STREAMQ_URL")
        case BrokerError() if remedy := remedy_of(error):
            return CommandLineError(f"{text}; {remedy}")
        case _:
            return CommandLineError(text)


def _key_options() -> list[str]:
    """Return the options that select the queue of the command that runs, from its command line or the environment."""
    from streamq.wire.command_line import named_app  # noqa: PLC0415 - keeps --help light

    if (by_app := named_app()) is not None:
        return list(by_app)
    context = click.get_current_context(silent=True)
    params = {} if context is None else context.params
    tiers = ",".join(params.get("tiers") or ())
    given = {name: params.get(name) for name in ("namespace", "group", "queue")} | {"tiers": tiers}
    return [word for name, value in given.items() if value for word in (f"--{name}", value)]
