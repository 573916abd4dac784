"""A pool in a FastAPI application. Needs fastapi and uvicorn.

Run this file, or ``uvicorn fastapi_app:app``, and ask it::

    curl localhost:8000/predict --json '{"age": [39, 52], "hours_per_week": [40, 60]}'
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict, cast

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from predictpool import (
    FunctionPredictor,
    InvalidFeatures,
    PoolClosed,
    PoolStatistics,
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


class People(BaseModel):
    age: list[float]
    hours_per_week: list[float]


class Answer(BaseModel):
    probability: list[float]


# --- the pool, for as long as the application lives -----------------------------------


class State(TypedDict):
    pool: PredictorPool[Arrays]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    async with PredictorPool(predictor, workers=2) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


async def pool_of(request: Request) -> PredictorPool[Arrays]:
    return cast("PredictorPool[Arrays]", request.state.pool)


Pool = Annotated[PredictorPool[Arrays], Depends(pool_of)]


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


for kind in STATUS:
    app.add_exception_handler(kind, refuse)


@app.exception_handler(ClientDisconnect)
async def nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for logs alone


# --- requests -------------------------------------------------------------------------


async def unless_gone(request: Request, prediction: Coroutine[Any, Any, Arrays]) -> Arrays:
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


@app.post("/predict")
async def predict(people: People, request: Request, pool: Pool) -> Answer:
    outputs = await unless_gone(request, pool.predict(people.model_dump()))
    return Answer(probability=outputs["probability"].tolist())


@app.get("/ready")
async def ready(response: Response, pool: Pool) -> PoolStatistics:
    now = pool.statistics()
    response.status_code = 200 if now.ready else 503
    return now


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
