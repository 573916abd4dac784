"""A pool in a Flask application, or in any other that is not async. Needs flask.

Run ``gunicorn --threads 8 "flask_app:create_app()"``, or this file to try it, and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

import atexit
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
from anyio.from_thread import start_blocking_portal
from flask import Flask, request
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


# --- the pool, for as long as the process lives ---------------------------------------


class Application(Flask):
    """Has a thread with an event loop, to which the pool belongs, and a portal to it."""

    def __init__(self) -> None:
        super().__init__(__name__)
        with ExitStack() as stack:
            self.portal = stack.enter_context(start_blocking_portal())
            self.pool: PredictorPool[Arrays] = stack.enter_context(
                self.portal.wrap_async_context_manager(PredictorPool(predictor, workers=2))
            )
            # Python waits for the server's threads, which end with their requests, before this.
            atexit.register(stack.pop_all().close)


# --- errors ---------------------------------------------------------------------------

STATUS: dict[type[Exception], int] = {
    InvalidFeatures: 422,
    TooManyRequests: 429,
    PoolClosed: 503,
    WorkerError: 503,
    PoolTimeout: 504,
}


def refuse(error: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    status = next(STATUS[kind] for kind in STATUS if isinstance(error, kind))
    # What happened to a worker is for the log, and there it is.
    message = "no worker can answer" if isinstance(error, WorkerError) else str(error)
    body: dict[str, Any] = {"error": type(error).__name__, "message": message}
    if isinstance(error, InvalidFeatures):
        body |= {"feature": error.feature, "given": error.given, "expected": error.expected}
    return body, status, {"Retry-After": "1"} if status in (429, 503) else {}


# --- requests -------------------------------------------------------------------------


def create_app() -> Application:
    """Make the application, in the process that serves: a pool does not survive a fork."""
    app = Application()
    for kind in STATUS:
        app.register_error_handler(kind, refuse)

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        outputs = app.portal.call(app.pool.predict, request.get_json())
        return {name: values.tolist() for name, values in outputs.items()}

    @app.get("/ready")
    def ready() -> tuple[dict[str, Any], int]:
        now = app.portal.call(app.pool.statistics)
        return asdict(now), 200 if now.ready else 503

    return app


if __name__ == "__main__":
    create_app().run(port=int(os.environ.get("PORT", "8000")))
