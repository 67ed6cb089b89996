"""`python -m streamq.testing check LOG --url redis://... --lease 1.5`: check a log from the shell."""

from __future__ import annotations

from pathlib import Path

import anyio
import click
import orjson

from streamq.broker import RedisBroker
from streamq.errors import StreamqError
from streamq.testing.checker import check as checked
from streamq.testing.read_state import final_state
from streamq.testing.recorder import read
from streamq.testing.report import FinalState, Limits
from streamq.testing.report_text import table


@click.group()
def main() -> None:
    """Tools to prove that no task was lost."""


@main.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--url", required=True, help="The server, in the state in which the run left it.")
@click.option("--namespace", default="queue", show_default=True, help="Prefix of the queue's keys.")
@click.option("--group", default="workers", show_default=True, help="Consumer group.")
@click.option("--shared", is_flag=True, help="The server holds other keys as well: read only the namespace.")
@click.option("--lease", type=float, required=True, help="Visibility timeout of the workers, in seconds.")
@click.option(
    "--slack", type=float, default=1.0, show_default=True, help="Seconds that a busy machine may add to each limit."
)
@click.option(
    "--recovery", type=float, help="Longest time that a task may wait for takeover from a dead worker, in seconds."
)
@click.option("--grace", type=float, help="Grace period of the workers, in seconds.")
@click.option("--dead", "dead", multiple=True, metavar="REASON", help="An allowed reason for dead letters. Repeatable.")
@click.option(
    "--culprit", "culprits", multiple=True, metavar="NAME", help="Name of a task that crashes its worker. Repeatable."
)
@click.option("--max-crashes", type=int, default=3, show_default=True, help="Most starts of a culprit.")
@click.option("--no-effects", is_flag=True, help="The handlers record no effects.")
@click.option("--effects-once", is_flag=True, help="Report every second effect of a task as a violation.")
@click.option("--not-drained", is_flag=True, help="Allow tasks that are left in Redis.")
@click.option("--clean-exit", is_flag=True, help="All workers stopped normally: report every consumer that is left.")
@click.option("--examples", type=int, default=3, show_default=True, help="Most examples to print for each violation.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", hidden=True)
def check(
    log: Path, url: str, namespace: str, group: str, shared: bool, lease: float, slack: float,
    recovery: float | None, grace: float | None, dead: tuple[str, ...], culprits: tuple[str, ...], max_crashes: int,
    no_effects: bool, effects_once: bool, not_drained: bool, clean_exit: bool, examples: int, as_json: bool,
    backend: str,
) -> None:  # fmt: skip
    """Check LOG and the final state of Redis against the promises. Exits with 1 if one is broken."""
    limits = Limits(
        lease=lease, slack=slack, recovery=recovery, grace=grace, dead_reasons=frozenset(dead),
        culprits=(lambda _task, name: name in culprits) if culprits else None, max_crashes=max_crashes,
        effects=not no_effects, effects_once=effects_once, drained=not not_drained, clean_exit=clean_exit,
    )  # fmt: skip

    async def look() -> FinalState:
        async with RedisBroker(url, namespace=namespace, group=group) as broker:
            return await final_state(broker, shared=shared)

    try:
        report = checked(read(log), anyio.run(look, backend=backend), limits)
    except StreamqError as error:
        raise click.UsageError(str(error)) from error
    click.echo(orjson.dumps(report.to_dict()).decode() if as_json else table(report, examples=examples))
    raise SystemExit(0 if report.ok else 1)


if __name__ == "__main__":
    main(prog_name="python -m streamq.testing")
