"""A web application whose handlers enqueue. Needs starlette; run as it is it also needs httpx.

python examples/web_handler.py          asks itself, and runs what was enqueued
uvicorn examples.web_handler:app        serves, with STREAMQ_URL=redis://localhost:6379
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streamq import RedisBroker, Worker, task

URL = os.environ.get("STREAMQ_URL", "memory://web")


@task(retries=5)
async def welcome(to: str) -> None:
    print(f"welcome, {to}")


async def sign_up(request: Request) -> JSONResponse:
    """Answer at once; a worker does the rest."""
    to = (await request.json())["to"]
    broker: RedisBroker = request.app.state.broker
    # A form that is sent twice within a minute welcomes once.
    handle = await broker.enqueue(welcome.options(dedup_key=f"welcome:{to}", dedup_ttl=60), to)
    return JSONResponse({"task_id": handle.task_id, "fresh": handle.fresh}, status_code=202)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One broker for the whole application: its connection is shared by all requests."""
    async with RedisBroker(URL) as broker:
        app.state.broker = broker
        yield


app = Starlette(routes=[Route("/sign-up", sign_up, methods=["POST"])], lifespan=lifespan)


async def main() -> None:
    import httpx  # noqa: PLC0415 - only to ask itself

    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
            for to in ("a@b.c", "a@b.c"):
                answer = await client.post("/sign-up", json={"to": to})
                print(answer.status_code, "fresh" if answer.json()["fresh"] else "sent already")
        await Worker(app.state.broker, tasks=[welcome], burst=True).run()


if __name__ == "__main__":
    anyio.run(main, backend=os.environ.get("BACKEND", "asyncio"))
