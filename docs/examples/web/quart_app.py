"""A pool in a Quart application. Needs quart and uvicorn.

Run this file, or ``uvicorn quart_app:app``, and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from quart import Quart, request

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


class Application(Quart):
    pool: PredictorPool[Arrays]


app = Application(__name__)


@app.while_serving
async def lifetime() -> AsyncGenerator[None, None]:
    async with PredictorPool(predictor, workers=2) as app.pool:
        yield


# --- errors ---------------------------------------------------------------------------

STATUS: dict[type[Exception], int] = {
    InvalidFeatures: 422,
    TooManyRequests: 429,
    PoolClosed: 503,
    WorkerError: 503,
    PoolTimeout: 504,
}


async def refuse(error: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    status = next(STATUS[kind] for kind in STATUS if isinstance(error, kind))
    # What happened to a worker is for the log, and there it is.
    message = "no worker can answer" if isinstance(error, WorkerError) else str(error)
    body: dict[str, Any] = {"error": type(error).__name__, "message": message}
    if isinstance(error, InvalidFeatures):
        body |= {"feature": error.feature, "given": error.given, "expected": error.expected}
    return body, status, {"Retry-After": "1"} if status in (429, 503) else {}


for kind in STATUS:
    app.register_error_handler(kind, refuse)


# --- requests -------------------------------------------------------------------------


@app.post("/predict")
async def predict() -> dict[str, Any]:
    outputs = await app.pool.predict(await request.get_json())
    return {name: values.tolist() for name, values in outputs.items()}


@app.get("/ready")
async def ready() -> tuple[dict[str, Any], int]:
    now = app.pool.statistics()
    return asdict(now), 200 if now.ready else 503


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
