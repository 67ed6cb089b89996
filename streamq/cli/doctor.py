"""`streamq doctor`: check a server and its queue, and print findings with remedies."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import WholeNumber, names
from streamq.cli.server_options import ServerOptions, server_options
from streamq.wire.rights import ROLES

if TYPE_CHECKING:
    from streamq.doctor import Report


@click.command(short_help="Check a server and its queue for problems.")
@server_options
@click.option("--role", type=click.Choice(ROLES), default="worker", show_default=True, show_envvar=True,
              help="Check that the user of the URL has the rights of this role.")  # fmt: skip
@click.option("--features", type=names, metavar="NAME,...", show_envvar=True,
              help="Check the rights for these features only: see streamq acl. [default: all of the role]")  # fmt: skip
@click.option("--scan", type=WholeNumber(0, 1_000_000_000), default=100_000, show_default=True, show_envvar=True,
              help="Most keys that the server may scan in search of unknown ones; 0 turns the scan off.")  # fmt: skip
@click.option("--strict", is_flag=True, show_envvar=True, help="Exit with 1 if there are warnings.")
@click.option("--quiet", "-q", is_flag=True, show_envvar=True, help="Print warnings and errors only.")
@click.option("--json", "as_json", is_flag=True, show_envvar=True, help="Print the report as one JSON object.")
@click.pass_context
def doctor(
    ctx: click.Context, /, role: Any, features: list[str] | None, scan: int, strict: bool, quiet: bool, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Check a server and its queue: print what is wrong, the evidence, and the remedy.

    Changes nothing on the server. Works with few permissions: a check that the user may not
    make is reported. Exits with 2 if there is an error (an unreachable server is one), with 1 if
    there is a warning and --strict is given, and with 0 otherwise.
    """
    from streamq.cli import output  # noqa: PLC0415 - keeps --help light
    from streamq.cli.run_command import run  # noqa: PLC0415
    from streamq.doctor import examine  # noqa: PLC0415

    broker = ServerOptions.take(given).broker()

    async def main() -> Report:
        async with broker:
            return await examine(broker, role=role, features=features, scan=scan)

    report = run(main)
    if as_json:
        output.result_json(report.as_dict())
    else:
        _print(report, quiet=quiet)
    ctx.exit(report.exit_code(strict=strict))


def _print(report: Report, *, quiet: bool) -> None:
    from streamq.cli import output  # noqa: PLC0415
    from streamq.doctor import Severity  # noqa: PLC0415
    from streamq.wire.printable import printable  # noqa: PLC0415

    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    for finding in report.findings:
        if not quiet or finding.severity >= Severity.WARNING:
            code, message, remedy = map(printable, (finding.code, finding.message, finding.remedy))
            for line in _lines(finding.severity.word, code, message, remedy, columns):
                output.result(line)
    counts = ", ".join(f"{count} {word}" for word, count in report.counts.items())
    output.note(f"{report.server} namespace={report.namespace} group={report.group}: {counts}")


def _lines(word: str, code: str, message: str, remedy: str, columns: int) -> list[str]:
    """Return a finding as lines of text: severity, code and message, then the remedy."""
    head = f"{word.upper() if word in ('warning', 'error') else word:<8} {code}: {message}"
    indent = " " * 9
    lines = textwrap.wrap(head, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    # The remedy is not wrapped, so that it can be copied.
    return [*lines, f"{indent}-> {remedy}"] if remedy else lines
