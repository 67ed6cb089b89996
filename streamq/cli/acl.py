"""`streamq acl`: print the ACL rules for a role. Needs no server."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import click

from streamq.cli.options import names
from streamq.cli.server_options import ServerOptions, server_options
from streamq.wire.rights import FEATURES, ROLES

if TYPE_CHECKING:
    from streamq.wire.rights import Role


@click.command(short_help="Print the ACL rules for a role.")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, show_envvar=True,
              help="What the user does. Give it several times for a program that has several roles.")  # fmt: skip
@click.option("--user", metavar="NAME", show_envvar=True, help="Name of the user. [default: streamq-ROLE]")
@click.option("--features", type=names, metavar="NAME,...", show_envvar=True,
              help="Only these features. [default: all of the role]")  # fmt: skip
@server_options
@click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print the rules as one JSON object.")
def acl(
    roles: tuple[Role, ...], user: str | None, features: list[str] | None,
    as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Print the command that gives a user of the server the rights of a role, and no others.

    It asks no server: it prints a line for redis-cli, with the word PASSWORD where you put the
    password. The rules name the keys and channels of one namespace. Of the --url only the number
    of the database counts.

    \b
    Features:
    """
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.usage_errors import CommandLineError  # noqa: PLC0415
    from streamq.client.address import Address  # noqa: PLC0415
    from streamq.errors import StreamqError  # noqa: PLC0415
    from streamq.wire.acl import acl_rules  # noqa: PLC0415

    if user is not None and (not user or any(char.isspace() or not char.isprintable() for char in user)):
        visible = all(char.isspace() or char.isprintable() for char in user)
        without = "white space" if visible else "control or invisible characters"
        raise CommandLineError(f"--user {user!r} cannot be used: give a name without {without}")
    broker = ServerOptions.take(given).broker()
    wanted = list(dict.fromkeys(roles))
    embedded = broker.url.startswith(("memory:", "embedded:"))
    try:
        rules = acl_rules(
            broker.keys, wanted, features, database=not embedded and Address.parse(broker.url).db != 0
        )  # fmt: skip
    except StreamqError as error:
        raise CommandLineError(str(error)) from error
    name = user or f"streamq-{'-'.join(wanted)}"
    if not as_json:
        output.result(rules.line(name), limit=1 << 20)
        return
    output.result_json({
        "user": name, "roles": wanted, "namespace": broker.keys.namespace, "group": broker.keys.group,
        "features": rules.features, "keys": rules.keys, "channels": rules.channels, "commands": rules.commands,
        "rules": rules.words(), "line": rules.line(name),
    })  # fmt: skip


def _feature_list() -> str:
    """Return the features as a list for the help: each with its roles, those in brackets only if they ask for it."""
    lines = []
    for name, feature in FEATURES.items():
        texts = []
        for roles, text in ((feature.roles, "{}"), (feature.on_demand, "({})")):
            shown = ["every role"] if len(roles) == len(ROLES) else [role for role in ROLES if role in roles]
            texts += [text.format(role) for role in shown]
        lines.append(f"  {name:<13} {', '.join(texts)}")
    return "\n".join(lines)


_ON_DEMAND: Final = "A role in brackets has the feature only if --features names it."
acl.help = f"{inspect.cleandoc(acl.help or '')}\n{_feature_list()}\n\n{_ON_DEMAND}"
