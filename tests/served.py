"""An ASGI application whose pool lives as long as its lifespan: what `test_servers` serves.

``GET /3`` answers ``{"outputs": [6.0], "server": pid}``; a number below zero is held on the
stage of the test, whose folder is in ``STAGE``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from predictpool import FunctionPredictor, PredictorPool
from tests.stage import StageDoor

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Be the application."""
    if scope["type"] == "lifespan":
        await live(scope["state"], receive, send)
    else:
        await answer(scope["state"]["pool"], float(scope["path"][1:]), send)


async def live(state: dict[str, Any], receive: Receive, send: Send) -> None:
    """Open the pool before the first request, and close it after the last."""
    await receive()
    async with PredictorPool(FunctionPredictor(load), workers=2, timeout=None) as pool:
        await pool.wait_ready()
        state["pool"] = pool
        await send({"type": "lifespan.startup.complete"})
        await receive()
    # Servers are content with a lifespan that fails at its end, so the test is told.
    os.write(2, b"closed, %d processes left\n" % len(psutil.Process().children()))
    await send({"type": "lifespan.shutdown.complete"})


async def answer(pool: PredictorPool[Any], number: float, send: Send) -> None:
    """Answer one request."""
    outputs = await pool.predict([number])
    body = json.dumps({"outputs": outputs.tolist(), "server": os.getpid()}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def load() -> Callable[[Any], Any]:
    """Double; called in the workers."""
    door = StageDoor(Path(os.environ["STAGE"]))

    def predict(x: Any) -> Any:
        if x[0] < 0:
            door.hold(os.getpid())
        return x * 2

    return predict
