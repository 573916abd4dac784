"""``predictpool serve`` with its default options, and the client's half; see `peers.served`."""

from contextlib import AbstractAsyncContextManager

import numpy as np
import orjson

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held, served
from benchmarks.peers.served import JSON, Message
from benchmarks.serve import Protocol

TARGET = "benchmarks.served_model:census"
PATHS: dict[Protocol, str] = {
    "Open Inference Protocol": "/v2/models/census/infer",
    "TensorFlow Serving": "/v1/models/census:predict",
}


def as_tensors(features: Arrays) -> Message:
    """Return a request of the Open Inference Protocol, in JSON."""
    inputs = [
        {
            "name": name,
            "shape": values.shape,
            "datatype": "BYTES" if values.dtype.kind == "O" else "FP32",
            "data": values.tolist(),
        }
        for name, values in features.items()
    ]
    return orjson.dumps({"inputs": inputs}), JSON


def from_tensors(message: Message) -> Arrays:
    """Return the arrays of an answer."""
    outputs = {}
    for tensor in orjson.loads(message[0])["outputs"]:
        name, data = tensor["name"], tensor["data"]
        if tensor["datatype"] == "BYTES":
            data = [text.encode() for text in data]
        outputs[name] = np.array(data, held.OUTPUTS[name]).reshape(tensor["shape"])
    return outputs


def as_columns(features: Arrays) -> Message:
    """Return a request of TensorFlow Serving's, by columns."""
    return orjson.dumps({"inputs": held.columns_of(features)}), JSON


def from_columns(message: Message) -> Arrays:
    """Return the arrays of an answer."""
    return held.arrays_of(orjson.loads(message[0])["outputs"])


CODECS = {
    "Open Inference Protocol": (as_tensors, from_tensors),
    "TensorFlow Serving": (as_columns, from_columns),
}


def opened(model: Model, *, protocol: Protocol, workers: int) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(
        ["-m", "predictpool", "serve", TARGET, "--port", str(port), "--workers", str(workers)],
        PATHS[protocol],
        port,
        held.told(model, batching=True),
        *CODECS[protocol],
    )
    return served.opened(service, model.rows(1)[0])
