"""`python -m tests.faults NAME|all|soak|list`: run scenarios, print what became of each task, exit 1 on a violation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

import click

from tests.faults import registry, table
from tests.faults.judge import Result, Run, run
from tests.servers import REAL_KINDS, Kind, available

BACKENDS = ("asyncio", "trio")
SOAK_TASKS = 1_000_000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name")
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything that is drawn.")
@click.option("--tasks", type=click.IntRange(1), help="How many tasks are sent. [default: the scenario's own]")
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: both with all, else asyncio]")
@click.option("--server", "kind", type=click.Choice([*REAL_KINDS, "both"]), default="valkey", show_default=True)
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long a soak goes on at most.")
@click.option("--faults", help="Only these of a soak's faults, by name: kill,freeze.")
@click.option("--slack", type=float, default=0.0, help="Seconds to add to every bound, on a machine that is busy.")
@click.option("--keep", is_flag=True, help="Keep the logs of all runs, not of failed ones only.")
def main(name: str, *, seed: int, tasks: int | None, backend: str | None, kind: str, minutes: float,
         faults: str | None, slack: float, keep: bool) -> None:  # fmt: skip
    """Run the scenario NAME; `all` runs every one, `list` says which there are, `soak` draws faults at random."""
    registry.load()
    if name == "list":
        click.echo(listing())
        return
    kinds = [one for one in (REAL_KINDS if kind == "both" else (kind,)) if available(one)]
    backends = [backend] if backend else BACKENDS if name == "all" else BACKENDS[:1]
    runs = planned(name, backends, kinds, seed=seed, tasks=tasks, minutes=minutes, faults=faults)
    results = [_shown(replace(one, slack=slack), keep=keep) for one in runs]
    click.echo("\n" + table.table(results))
    failed = [result for result in results if not result.ok]
    for result in failed:
        click.echo("\n" + table.complaints(result))
    sys.exit(1 if failed else 0)


def planned(
    name: str, backends: Iterable[str], kinds: Iterable[Kind], *, seed: int, tasks: int | None, minutes: float,
    faults: str | None,
) -> list[Run]:  # fmt: skip
    """Return what to run. Raises click.BadParameter for an unknown name."""
    if name == "soak":
        from tests.faults.soak import soak

        try:
            scenarios = [soak(minutes=minutes, names=faults.split(",") if faults else None)]
        except LookupError as error:
            raise click.BadParameter(str(error)) from error
        tasks = tasks or SOAK_TASKS
    elif name == "all":
        scenarios = [registry.SCENARIOS[each] for each in sorted(registry.SCENARIOS)]
    elif name in registry.SCENARIOS:
        scenarios = [registry.SCENARIOS[name]]
    else:
        raise click.BadParameter(f"no scenario {name!r}; there are {', '.join(sorted(registry.SCENARIOS))}")
    kinds = list(kinds)
    return [
        Run(scenario, backend, kind, seed, tasks or scenario.tasks)
        for scenario in scenarios for backend in backends for kind in kinds
    ]  # fmt: skip


def _shown(what: Run, *, keep: bool) -> Result:
    """Run one, and say how it went."""
    result = run(what, keep=keep)
    verdict = "holds" if result.ok else "VIOLATED"
    where = f"  log: {result.folder}" if result.folder else ""
    click.echo(f"{what.scenario.name:24} {what.backend:8} {what.kind:7} {result.seconds:6.1f} s  {verdict}{where}")
    return result


def listing() -> str:
    """Return every scenario and every injector of the soak, with what they do."""
    scenarios = [(one.name, one.summary) for one in sorted(registry.SCENARIOS.values(), key=lambda one: one.name)]
    injectors = [(one.name, one.group, one.excuses) for one in registry.INJECTORS.values()]
    faults = table.aligned(injectors or [("none", "", "")])
    return f"{table.aligned(scenarios)}\n\nfaults of the soak:\n{faults}"


if __name__ == "__main__":
    main()
