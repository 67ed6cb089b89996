"""Exporters need their extras only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import streamq.exporters
from tests.test_import_cost import CORE, modules_after


@pytest.mark.parametrize("code", ["import streamq", "import streamq.exporters"])
def test_no_extra_is_imported_before_it_is_needed(code):
    """SPEC 1: `import streamq` must not import an extra."""
    roots = {name.partition(".")[0] for name in modules_after(code)}
    assert roots & {"prometheus_client", "opentelemetry", "starlette", "uvicorn"} == set()


@pytest.mark.slow
def test_a_worker_loads_no_exporter():
    """redis-py loads OpenTelemetry's SDK if it is installed. streamq does not."""
    loaded = modules_after("from streamq import RedisBroker, Worker\nRedisBroker()") - modules_after(CORE)
    assert {name for name in loaded if name.startswith(("streamq.exporters", "prometheus_client", "uvicorn"))} == set()


@pytest.mark.parametrize(("module", "blocked"), [("prometheus", "opentelemetry"), ("tracing", "prometheus_client")])
def test_one_exporter_does_not_need_the_extra_of_the_other(module, blocked):
    """Each can be imported if only its own extra is installed."""
    modules_after(f"import sys; sys.modules[{blocked!r}] = None\nimport streamq.exporters.{module}")


@pytest.mark.parametrize(
    ("name", "module", "blocked"),
    [
        ("QueueCollector", "prometheus", "opentelemetry"),
        ("TracingMiddleware", "tracing", "prometheus_client"),
        ("inject_headers", "tracing", "prometheus_client"),
    ],
)
def test_the_package_exports_each_exporter(name, module, blocked):
    """A name of the package is that of its module, and needs only the extra of that module."""
    modules_after(
        f"import sys; sys.modules[{blocked!r}] = None\n"
        f"from streamq.exporters import {name}\n"
        f"import streamq.exporters.{module} as home\n"
        f"assert home.{name} is {name}"
    )


def test_the_package_has_no_other_names():
    unknown = "nothing"
    with pytest.raises(AttributeError, match=unknown):
        getattr(streamq.exporters, unknown)
    assert {"QueueCollector", "TracingMiddleware", "inject_headers"} <= set(dir(streamq.exporters))


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "metrics"), ("tracing", "opentelemetry", "otel")],
)
def test_a_missing_extra_is_named(module, package, extra):
    """Without its package the error says what to install."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from streamq.errors import MissingExtraError\n"
        f"try: import streamq.exporters.{module}\n"
        "except MissingExtraError as error: print(error.extra, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    remedy = f"install an extra: pip install 'streamq[{extra}]'"
    assert done.stdout.startswith(f"{extra} to use streamq.exporters.{module}, {remedy}")
