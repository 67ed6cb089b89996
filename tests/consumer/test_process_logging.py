"""A record of a process is logged as if a thread of the worker had made it, whatever its modules configure."""

from __future__ import annotations

import sys

import anyio
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(90)]

SCRIPT = """
import logging, logging.config, sys, traceback
import anyio
from streamq import RedisBroker, Worker, task

class Shown(logging.StreamHandler):
    def emit(self, record):
        print(self.get_name(), record.name, record.levelname, record.getMessage(), getattr(record, "row", ""),
              *(record.exc_info and [record.exc_info[0].__name__, *frames(record.exc_info[2])] or ()), sep="|")

def frames(trace):
    return [one.name for one in traceback.extract_tb(trace)]

CONFIGURE

logging.getLogger("disabled").disabled = True
log = logging.getLogger("shop")

def logs():
    log.debug("not wanted")
    log.info("sending", extra={"row": 7})
    try:
        {}["bank"]
    except KeyError:
        log.exception("no bank")
    logging.getLogger("disabled").error("not wanted")

@task(run_in="RUN_IN", retries=0)
def sends() -> None:
    logs()
    logging.basicConfig(level="DEBUG", force=True)  # in a process: without effect

async def main():
    async with RedisBroker("memory://") as broker:
        await broker.enqueue(sends)
        await Worker(broker, [sends], burst=True, processes=1).run()

if __name__ == "__main__":
    anyio.run(main, backend="BACKEND")
"""

CONFIGURED = {
    "dictConfig": """
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"root": {"()": Shown}, "shop": {"()": Shown}},
    "root": {"level": "INFO", "handlers": ["root"]}, "loggers": {"shop": {"handlers": ["shop"]}},
})
for one in (logging.getLogger(), logging.getLogger("shop")):
    one.handlers[0].set_name(one.name)
""",
    "a file": """
logging.basicConfig(level="INFO", handlers=[Shown()])
logging.getLogger("shop").addHandler(logging.FileHandler("shop.log"))
""",
    "not propagated": """
logging.getLogger("shop").addHandler(Shown())
logging.getLogger("shop").setLevel("INFO")
logging.getLogger("shop").propagate = False
""",
}


@pytest.mark.parametrize("configured", CONFIGURED)
async def test_a_record_of_a_process_is_logged_as_one_of_a_thread(tmp_path, anyio_backend_name, configured):
    """It came twice, or as a line that was printed, without its logger and its level; a log file had it twice."""
    found = []
    for run_in in ("thread", "process"):
        script = tmp_path / "shop.py"
        text = SCRIPT.replace("CONFIGURE", CONFIGURED[configured]).replace("RUN_IN", run_in)
        if run_in == "thread":
            text = text.replace('logging.basicConfig(level="DEBUG"', 'dict(level="DEBUG"')
        script.write_text(text.replace("BACKEND", anyio_backend_name))
        file = tmp_path / "shop.log"
        file.unlink(missing_ok=True)
        ended = await anyio.run_process([sys.executable, str(script)], cwd=tmp_path, stderr=sys.stderr)
        lines = [line for line in ended.stdout.decode().splitlines() if "|shop|" in line or "not wanted" in line]
        found.append((lines, file.read_text() if file.exists() else ""))
    assert found[0] == found[1]
    assert len(found[1][0]) == (4 if configured == "dictConfig" else 2)
    assert found[1][0][0].endswith("|shop|INFO|sending|7")
    assert found[1][0][-1].endswith("|shop|ERROR|no bank||KeyError|logs")
    assert "not wanted" not in str(found)
