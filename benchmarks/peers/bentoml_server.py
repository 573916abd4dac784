"""BentoML: two workers, JSON, its adaptive batching; and the client's half."""

import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import bentoml
import orjson

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held, served
from benchmarks.peers.served import Message

# What it does beside answering is off: its log of requests, and its metrics.
SETTINGS: dict[str, Any] = {
    "workers": 2,
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}


@bentoml.service(**SETTINGS)
class Census:
    """Answers one request at a time."""

    def __init__(self) -> None:
        self._held = held.Held()

    @bentoml.api
    async def predict(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs."""
        return self._held.predict(columns)


@bentoml.service(**SETTINGS)
class BatchedCensus:
    """Answers a batch."""

    def __init__(self) -> None:
        self._held = held.Held()

    @bentoml.api(batchable=True, max_batch_size=held.MAX_BATCH_SIZE)
    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the outputs of each request."""
        return self._held.predict_requests(requests)


def encode(features: Arrays) -> Message:
    """Return a request."""
    return orjson.dumps({"columns": held.columns_of(features)}), served.JSON


def encode_batched(features: Arrays) -> Message:
    """Return a request for a service that makes batches: it is a batch itself."""
    return orjson.dumps({"requests": [held.columns_of(features)]}), served.JSON


def decode_batched(message: Message) -> Arrays:
    """Return an answer's arrays."""
    return held.arrays_of(orjson.loads(message[0])[0])


def opened(model: Model, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(
        [
            str(Path(sys.executable).with_name("bentoml")),
            "serve",
            f"{__name__}:{'BatchedCensus' if batching else 'Census'}",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        "/predict",
        port,
        {**held.told(model, batching), "BENTOML_DO_NOT_TRACK": "true"},
        encode_batched if batching else encode,
        decode_batched if batching else served.from_json,
    )
    return served.opened(service, model.rows(1)[0])
