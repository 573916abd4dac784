"""PyTriton: two callables, Triton's HTTP with binary tensors; and the client's half.

Triton makes a batch of what is waiting when a callable is free; without batching it hands on one
request at a time. Every tensor takes its own way from Triton to Python, so they are packed.
"""

import struct
import sys
import sysconfig
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import orjson
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held, packed, served
from benchmarks.peers.served import Message

NAME = "census"
HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"f4": "FP32", "i8": "INT64", "O": "BYTES"}
DTYPES = {datatype: np.dtype(kind) for kind, datatype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def infer_with(model: packed.Unpacked) -> Callable[..., Any]:
    """Return the callable of one worker."""

    def infer(numbers: Any, texts: Any) -> Arrays:
        return model.predict(numbers, texts)

    merged: Callable[..., Any] = batch(infer)
    return merged


def main() -> None:
    """Serve."""
    workers = [packed.Unpacked(held.Held()) for _ in range(2)]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=[infer_with(worker) for worker in workers],
            inputs=[
                Tensor(name="numbers", dtype=np.float32, shape=(len(workers[0].numbers),)),
                Tensor(name="texts", dtype=bytes, shape=(len(workers[0].texts),)),
            ],
            outputs=[
                Tensor(name="numbers", dtype=np.float32, shape=(packed.WIDTHS["numbers"],)),
                Tensor(name="ids", dtype=np.int64, shape=(packed.WIDTHS["ids"],)),
                Tensor(name="texts", dtype=bytes, shape=(packed.WIDTHS["texts"],)),
            ],
            config=ModelConfig(
                max_batch_size=held.MAX_BATCH_SIZE,
                batcher=DynamicBatcher() if held.batching() else None,
            ),
        )
        triton.serve()


def encode(features: Arrays) -> Message:
    """Return a request: a JSON header, and the tensors' bytes one after another."""
    inputs, bodies = [], []
    for name, values in packed.pack_features(features).items():
        kind = packed.KINDS[name]
        bodies.append(_with_lengths(values.ravel()) if kind == "O" else values.tobytes())
        inputs.append(
            {
                "name": name,
                "shape": values.shape,
                "datatype": DATATYPES[kind],
                "parameters": {"binary_data_size": len(bodies[-1])},
            }
        )
    header = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return b"".join([header, *bodies]), {HEADER_LENGTH: str(len(header))}


def _with_lengths(texts: Any) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join([part for text in encoded for part in (_LENGTH.pack(len(text)), text)])


def decode(message: Message) -> Arrays:
    """Return an answer's arrays."""
    body, headers = message
    at = int(headers[HEADER_LENGTH])
    outputs = {}
    for tensor in orjson.loads(body[:at])["outputs"]:
        size, dtype = tensor["parameters"]["binary_data_size"], DTYPES[tensor["datatype"]]
        part = body[at : at + size]
        values = _texts(part) if dtype.kind == "O" else np.frombuffer(part, dtype)
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
        at += size
    return packed.unpack_outputs(outputs)


def _texts(body: bytes) -> Any:
    texts, at = [], 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        texts.append(body[at : at + length])
        at += length
    return np.array(texts, object)


def opened(model: Model, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(
        ["-m", __name__, str(port)],
        f"/v2/models/{NAME}/infer",
        port,
        # Triton's Python half is linked to libpython: it has to find that of this interpreter.
        {**held.told(model, batching), "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
        encode,
        decode,
    )
    return served.opened(service, model.rows(1)[0])


if __name__ == "__main__":
    main()
