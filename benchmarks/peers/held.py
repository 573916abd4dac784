"""What each worker of a peer holds: the cached generator, asked with lists as they come off a wire.

A peer's server is told by its environment which model that is; see `told`.
"""

import json
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.models import Arrays, Model
from predictpool import Device, Signature

VARIABLE = "PREDICTPOOL_PEER"
MAX_BATCH_SIZE = 64

Columns = dict[str, list[Any]]
"""Name → one value for each row. What the model returns per row as a list is a list in there."""

# What the canned classifier returns; a client of a server knows that from its documentation.
OUTPUTS = {
    "logits": "f4",
    "logistic": "f4",
    "probabilities": "f4",
    "class_ids": "i8",
    "classes": "O",
    "all_class_ids": "i4",
    "all_classes": "O",
}


def told(model: Model, batching: bool) -> dict[str, str]:
    """Return the environment variable that tells a server's processes what to hold."""
    said = {"name": model.name, "directory": model.directory, "batching": batching}
    return {VARIABLE: json.dumps(said)}


def batching() -> bool:
    """Return whether this server is to make batches."""
    return bool(json.loads(os.environ[VARIABLE])["batching"])


def model() -> Model:
    """Return the model that this server is to hold."""
    said = json.loads(os.environ[VARIABLE])
    return Model(said["name"], said["directory"])


class Held:
    """The model that `told` named, loaded and warm."""

    def __init__(self) -> None:
        asked = model()
        self._predictor = asked.predictor("generator")
        self._predictor.load(Device(threads=1))
        signature = self._predictor.signature
        assert isinstance(signature, Signature)  # derived from the feature columns
        self.features: dict[str, tuple[np.dtype[Any], tuple[Any, ...]]] = {
            name: (spec.dtype, (-1, *spec.shape)) for name, spec in signature.features.items()
        }
        self.predict_arrays(asked.rows(1)[0])

    def predict_arrays(self, features: Arrays) -> Arrays:
        """Return all outputs for arrays: text is str or bytes in there."""
        return self._predictor.predict(
            {
                name: _as_bytes(features[name])
                if dtype.kind == "O"
                else features[name].reshape(shape)
                for name, (dtype, shape) in self.features.items()
            }
        )

    def predict(self, columns: Columns) -> Columns:
        """Return all outputs for the rows of one request."""
        outputs = self._predictor.predict(
            {
                name: _array(columns[name], dtype).reshape(shape)
                for name, (dtype, shape) in self.features.items()
            }
        )
        return {name: _listed(outputs[name]) for name in OUTPUTS}

    def predict_requests(self, requests: Sequence[Columns]) -> list[Columns]:
        """Return all outputs for each request, from one call of the model."""
        outputs = self.predict(
            {
                name: list(chain.from_iterable([request[name] for request in requests]))
                for name in self.features
            }
        )
        answers, first = [], 0
        some = next(iter(self.features))
        for request in requests:
            last = first + len(request[some])
            answers.append({name: values[first:last] for name, values in outputs.items()})
            first = last
        return answers


def columns_of(features: Arrays) -> Columns:
    """Return a request as it goes into JSON or the like."""
    return {name: values.tolist() for name, values in features.items()}


def arrays_of(columns: Columns) -> Arrays:
    """Return an answer as the pool gives it: the arrays that the model returned."""
    return {name: _array(columns[name], dtype) for name, dtype in _OUTPUT_DTYPES}


def _array(values: list[Any], dtype: np.dtype[Any]) -> Any:
    if dtype.kind != "O":
        return np.array(values, dtype)
    if isinstance(values[0], str):
        return np.array([text.encode() for text in values], dtype)
    return np.array([[text.encode() for text in row] for row in values], dtype)


def _as_bytes(texts: Any) -> Any:
    return np.array(
        [text.encode() if isinstance(text, str) else text for text in texts.ravel().tolist()],
        object,
    )


def _listed(values: Any) -> list[Any]:
    if values.dtype.kind != "O":
        listed: list[Any] = values.tolist()
        return listed
    return [[text.decode() for text in row] for row in values.tolist()]


_OUTPUT_DTYPES = tuple((name, np.dtype(dtype)) for name, dtype in OUTPUTS.items())
