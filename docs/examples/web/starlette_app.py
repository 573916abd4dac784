"""A pool in a Starlette application. Needs starlette and uvicorn.

Run this file, or ``uvicorn starlette_app:app``, and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

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


class State(TypedDict):
    pool: PredictorPool[Arrays]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    async with PredictorPool(predictor, workers=2) as pool:
        yield {"pool": pool}


# --- errors ---------------------------------------------------------------------------

STATUS: dict[type[Exception], int] = {
    InvalidFeatures: 422,
    TooManyRequests: 429,
    PoolClosed: 503,
    WorkerError: 503,
    PoolTimeout: 504,
}


async def refuse(request: Request, error: Exception) -> Response:
    status = next(STATUS[kind] for kind in STATUS if isinstance(error, kind))
    # What happened to a worker is for the log, and there it is.
    message = "no worker can answer" if isinstance(error, WorkerError) else str(error)
    body: dict[str, Any] = {"error": type(error).__name__, "message": message}
    if isinstance(error, InvalidFeatures):
        body |= {"feature": error.feature, "given": error.given, "expected": error.expected}
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


async def nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for logs alone


# --- requests -------------------------------------------------------------------------


async def unless_gone(request: Request[State], prediction: Coroutine[Any, Any, Arrays]) -> Arrays:
    """Await a prediction, and cancel it if the client goes away meanwhile."""

    async def client_goes() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    predicting, going = asyncio.create_task(prediction), asyncio.create_task(client_goes())
    try:
        await asyncio.wait((predicting, going), return_when=asyncio.FIRST_COMPLETED)
        if not predicting.done():
            raise ClientDisconnect
        return predicting.result()
    finally:
        predicting.cancel()
        going.cancel()


async def predict(request: Request[State]) -> Response:
    try:
        people = await request.json()
    except ValueError as error:
        raise HTTPException(400, f"The body is not JSON: {error}") from error
    outputs = await unless_gone(request, request.state["pool"].predict(people))
    return JSONResponse({name: values.tolist() for name, values in outputs.items()})


async def ready(request: Request[State]) -> Response:
    now = request.state["pool"].statistics()
    return JSONResponse(asdict(now), 200 if now.ready else 503)


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/ready", ready)],
    exception_handlers={**dict.fromkeys(STATUS, refuse), ClientDisconnect: nobody_listens},
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
