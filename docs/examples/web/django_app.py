"""A pool in a Django application, on ASGI. Needs django and uvicorn.

Run this file, or ``uvicorn django_app:application``, and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST
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


# --- errors ---------------------------------------------------------------------------

STATUS: dict[type[Exception], int] = {
    InvalidFeatures: 422,
    TooManyRequests: 429,
    PoolClosed: 503,
    WorkerError: 503,
    PoolTimeout: 504,
}


def refusal(error: Exception) -> JsonResponse:
    status = next(STATUS[kind] for kind in STATUS if isinstance(error, kind))
    # What happened to a worker is for the log, and there it is.
    message = "no worker can answer" if isinstance(error, WorkerError) else str(error)
    body: dict[str, Any] = {"error": type(error).__name__, "message": message}
    if isinstance(error, InvalidFeatures):
        body |= {"feature": error.feature, "given": error.given, "expected": error.expected}
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JsonResponse(body, status=status, headers=headers)


# --- requests; in a project, its settings, urls.py and views.py -----------------------

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    LOGGING={  # by itself Django shows a view's exception to nobody unless DEBUG is set
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    },
)


def pool_of(request: ASGIRequest) -> PredictorPool[Arrays]:
    pool: PredictorPool[Arrays] = request.scope["state"]["pool"]
    return pool


@require_POST
async def predict(request: ASGIRequest) -> JsonResponse:
    try:
        people = json.loads(request.body)
    except ValueError as error:
        return JsonResponse({"message": f"The body is not JSON: {error}"}, status=400)
    try:
        outputs = await pool_of(request).predict(people)
    except tuple(STATUS) as error:
        return refusal(error)
    return JsonResponse({name: values.tolist() for name, values in outputs.items()})


async def ready(request: ASGIRequest) -> JsonResponse:
    now = pool_of(request).statistics()
    return JsonResponse(asdict(now), status=200 if now.ready else 503)


urlpatterns = [path("predict", predict), path("ready", ready)]


# --- the pool, for as long as the server lives; in a project, asgi.py -----------------

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":  # of which Django knows nothing
        await live(scope["state"], receive, send)
    else:
        await django(scope, receive, send)


async def live(state: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    pool = state["pool"] = PredictorPool(predictor, workers=2)
    try:
        await pool.open()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await pool.aclose()
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    uvicorn.run(application, port=int(os.environ.get("PORT", "8000")))
