"""The app of a command: modules whose broker says where the queue is, and whose tasks say how each is sent.

`--app MODULE` names them, or `app` in `[tool.streamq]` of the nearest pyproject.toml. To find an app is light. To load
it imports the code of the user, and that of workers: only a command that has an app pays for that.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from streamq.cli.source_watch import current_directory
from streamq.cli.usage_errors import CommandLineError

if TYPE_CHECKING:
    from streamq.broker import RedisBroker
    from streamq.cli.loading import Loaded
    from streamq.wire.signing import SigningKeys

APP: Final = "STREAMQ_APP"
_FILE: Final = "pyproject.toml"
_EXAMPLE: Final = '[tool.streamq] takes app = "shop.tasks", or a list of modules'

Specs: TypeAlias = tuple[str, ...]


def project_app() -> tuple[Specs, str | None]:
    """Return the modules that the nearest pyproject.toml names, and its folder. () and None if it names none.

    Raises CommandLineError if it cannot be read, or names something else.
    """
    here = current_directory()
    file = next((one for one in _candidates(here) if _is_file(one)), None) if here is not None else None
    if file is None:
        return (), None
    try:
        content = file.read_bytes()
        settings = _settings(content) if b"streamq" in content else {}
    except (OSError, ValueError) as error:  # of TOML and of UTF-8, too
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandLineError(f"{file} cannot be read: {why}; mend it, or give --app or --url") from None
    return _read(file, settings), str(file.parent)


def _settings(content: bytes) -> Any:
    import tomllib  # noqa: PLC0415 - few projects name an app

    table = tomllib.loads(content.decode()).get("tool", {})
    return table.get("streamq", {}) if isinstance(table, dict) else {}


def _candidates(here: Path) -> list[Path]:
    return [folder / _FILE for folder in (here, *here.parents)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that this user may not look into
        return False


def _read(file: Path, settings: Any) -> Specs:
    """Return the modules of `[tool.streamq]`. A path of a file is one from the folder of pyproject.toml."""
    app = settings.get("app", ()) if isinstance(settings, dict) else None
    named = app.split(",") if isinstance(app, str) else app
    if not isinstance(named, list | tuple) or not all(isinstance(one, str) and one.strip() for one in named):
        raise CommandLineError(f"{file}: {_EXAMPLE}")
    if unknown := [name for name in settings if name != "app"]:
        raise CommandLineError(f"{file}: [tool.streamq] has no setting {', '.join(unknown)}; {_EXAMPLE}")
    return tuple(_from(file.parent, one.strip()) for one in named)


def _from(folder: Path, spec: str) -> str:
    place, colon, attribute = spec.partition(":")
    is_path = place.endswith(".py") or "/" in place
    return f"{folder / place}{colon}{attribute}" if is_path else spec


@functools.cache
def load_app(specs: Specs, folder: str | None) -> Loaded:
    """Import the modules of an app, and return their content. What they print goes to stderr: stdout has the result.

    Raises CommandLineError if a module cannot be used, or has brokers and none of them is called `broker`.
    """
    from streamq.cli.loading import load  # noqa: PLC0415 - keeps a command without an app light

    with contextlib.redirect_stdout(sys.stderr):
        loaded = load(specs, folder=folder, without_tasks=True)
    others = loaded.other_brokers
    if loaded.broker is None and others:
        has = f"a broker of another name, {others[0]}" if len(others) == 1 else f"several brokers, {', '.join(others)}"
        raise CommandLineError(
            f"{', '.join(specs)} has {has}: call the one of the workers `broker`, or name it, as in --app {others[0]}"
        )
    return loaded


def broker_with(broker: RedisBroker, given: Mapping[str, Any], *, signing: SigningKeys | None) -> RedisBroker:
    """Return a broker like the app's, with options of the command line in the place of its own. Raises StreamqError.

    Of tiers that only the command line has, nothing but the name is known.
    """
    from streamq.broker import RedisBroker  # noqa: PLC0415
    from streamq.wire.tiers import Tier  # noqa: PLC0415

    values: dict[str, Any] = {"url": broker.url, "group": broker.keys.group}
    if "queue" in given:
        values["queue_name"] = given["queue"]
    else:
        own = {tier.name: tier for tier in broker.tiers}
        named = given.get("tiers", list(own))
        known = own.keys() >= set(named)
        tiers = [own[name] if known else Tier(name, threshold=-place) for place, name in enumerate(named)]
        values |= {"namespace": broker.keys.namespace, "tiers": tiers}
    values |= {name: given[name] for name in ("url", "namespace", "group") if name in given}
    connect_timeout, reply_timeout = broker.timeouts
    return RedisBroker(
        **values, max_payload=broker.max_payload, connect_timeout=connect_timeout, reply_timeout=reply_timeout,
        dead_letters=broker.dead_letters, clock=broker.clock, middleware=broker.middleware, signing=signing,
    )  # fmt: skip
