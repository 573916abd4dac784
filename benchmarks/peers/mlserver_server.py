"""MLServer: two parallel workers, V2 protocol in JSON, its shortest window; and the client's half.

It checks every tensor by itself, so they are packed.
"""

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held, packed, served
from benchmarks.peers.served import Message

NAME = "census"
DATATYPES = {"f4": "FP32", "i8": "INT64", "O": "BYTES"}
SHORTEST_WINDOW = 0.001  # seconds; 0 turns batching off


class Census(MLModel):
    """Answers one request, which may be a batch that MLServer has made of several."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = packed.Unpacked(held.Held())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the outputs."""
        given = {
            tensor.name: np.array(tensor.data.root, packed.KINDS[tensor.name]).reshape(tensor.shape)
            for tensor in payload.inputs
        }
        outputs = [
            ResponseOutput(
                name=name,
                shape=list(values.shape),
                datatype=DATATYPES[packed.KINDS[name]],
                data=_listed(values),
            )
            for name, values in self._model.predict(**given).items()
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def _listed(values: Any) -> list[Any]:
    flat: list[Any] = values.ravel().tolist()
    return [text.decode() for text in flat] if values.dtype.kind == "O" else flat


def encode(features: Arrays) -> Message:
    """Return a request."""
    inputs = [
        {
            "name": name,
            "shape": values.shape,
            "datatype": DATATYPES[packed.KINDS[name]],
            "data": values.ravel().tolist(),
        }
        for name, values in packed.pack_features(features).items()
    ]
    return orjson.dumps({"inputs": inputs}), served.JSON


def decode(message: Message) -> Arrays:
    """Return an answer's arrays."""
    outputs = {}
    for tensor in orjson.loads(message[0])["outputs"]:
        name, data = tensor["name"], tensor["data"]
        if name == "texts":
            data = [text.encode() for text in data]
        outputs[name] = np.array(data, packed.KINDS[name]).reshape(tensor["shape"])
    return packed.unpack_outputs(outputs)


@asynccontextmanager
async def opened(model: Model, batching: bool) -> AsyncIterator[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    with _directory(port, batching) as directory:
        service = served.Service(
            [str(Path(sys.executable).with_name("mlserver")), "start", directory],
            f"/v2/models/{NAME}/infer",
            port,
            held.told(model, batching),
            encode,
            decode,
        )
        async with served.opened(service, model.rows(1)[0]) as ask:
            yield ask


@contextmanager
def _directory(port: int, batching: bool) -> Iterator[str]:
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": served.free_port(),
        "metrics_port": served.free_port(),
        "parallel_workers": 2,
        # What it does beside answering is off.
        "metrics_endpoint": None,
        "gzip_enabled": False,
    }
    batches = {"max_batch_size": held.MAX_BATCH_SIZE, "max_batch_time": SHORTEST_WINDOW}
    model_settings = {
        "name": NAME,
        "implementation": f"{__name__}.{Census.__name__}",
        **(batches if batching else {}),
    }
    with tempfile.TemporaryDirectory(prefix="mlserver-") as directory:
        Path(directory, "settings.json").write_text(json.dumps(settings))
        Path(directory, "model-settings.json").write_text(json.dumps(model_settings))
        yield directory
