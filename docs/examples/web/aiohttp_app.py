"""A pool in an aiohttp application. Needs aiohttp.

Run this file and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.typedefs import Handler
from numpy.typing import NDArray

from predictpool import (
    FunctionPredictor,
    InvalidFeatures,
    PoolClosed,
    PoolTimeout,
    PredictorPool,
    TooManyRequests,
    WorkerError,
)

Arrays = dict[str, NDArray[Any]]


# --- the model: any predictor can stand here -----------------------------------------


def load() -> Callable[[Arrays], Arrays]:
    """Run in each worker, once; return the function that predicts."""

    def predict(people: Arrays) -> Arrays:
        score = 0.05 * (people["age"] - 40) + 0.05 * (people["hours_per_week"] - 50)
        return {"probability": 1 / (1 + np.exp(-score))}

    return predict


predictor = FunctionPredictor(
    load,
    row_wise=True,
    signature={"age": (np.float32, ()), "hours_per_week": (np.float32, ())},
)


# --- the pool, for as long as the application lives -----------------------------------

POOL: web.AppKey[PredictorPool[Arrays]] = web.AppKey("pool", PredictorPool)


async def lifetime(app: web.Application) -> AsyncIterator[None]:
    async with PredictorPool(predictor, workers=2) as app[POOL]:
        yield


# --- errors ---------------------------------------------------------------------------

STATUS: dict[type[Exception], int] = {
    InvalidFeatures: 422,
    TooManyRequests: 429,
    PoolClosed: 503,
    WorkerError: 503,
    PoolTimeout: 504,
}


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except tuple(STATUS) as error:
        status = next(STATUS[kind] for kind in STATUS if isinstance(error, kind))
        # What happened to a worker is for the log, and there it is.
        message = "no worker can answer" if isinstance(error, WorkerError) else str(error)
        body: dict[str, Any] = {"error": type(error).__name__, "message": message}
        if isinstance(error, InvalidFeatures):
            body |= {"feature": error.feature, "given": error.given, "expected": error.expected}
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        return web.json_response(body, status=status, headers=headers)


# --- requests -------------------------------------------------------------------------


async def predict(request: web.Request) -> web.Response:
    try:
        people = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"The body is not JSON: {error}") from error
    outputs = await request.app[POOL].predict(people)
    return web.json_response({name: values.tolist() for name, values in outputs.items()})


async def ready(request: web.Request) -> web.Response:
    now = request.app[POOL].statistics()
    return web.json_response(asdict(now), status=200 if now.ready else 503)


app = web.Application(middlewares=[refuse])
app.cleanup_ctx.append(lifetime)
app.add_routes([web.post("/predict", predict), web.get("/ready", ready)])

if __name__ == "__main__":
    # Without `handler_cancellation` a client that goes away leaves its prediction running.
    port = int(os.environ.get("PORT", "8000"))
    web.run_app(app, host="127.0.0.1", port=port, handler_cancellation=True)
