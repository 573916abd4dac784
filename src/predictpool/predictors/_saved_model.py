"""A SavedModel that stays loaded, on any TensorFlow from 2.12 on.

It runs in a session of TensorFlow 1, which loads sooner and answers a small request in as
little as half the time that a call of the signature takes (the figures are in
docs/reference/models.md); and as a function of TensorFlow 2 where such a session does not
get all that the model needs. `SavedModelPredictor.method` says which.

TensorFlow is imported in `SavedModelPredictor.load`, so only ever in a worker.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from predictpool._columns import Array
from predictpool._devices import Device
from predictpool._features._refusals import name_list
from predictpool._features._signature import Extra, Signature, SignatureSource
from predictpool._features._spec import FeatureSpec
from predictpool.predictors._estimator_inputs import sparse_parts
from predictpool.predictors._saved_model_models import (
    FunctionModel,
    LoadedModel,
    Session,
    dtype_name,
    empty_outputs,
    numpy_dtype,
)
from predictpool.predictors._source import ModelSource
from predictpool.predictors._tensorflow import require_tensorflow
from predictpool.predictors._versions import find_model

Method = Literal["session", "function"]

_STRING = 7  # tf.string.as_datatype_enum


class SavedModelPredictor:
    """Predicts with a SavedModel; TensorFlow 2.12 and newer.

    Args:
        path: the folder of a SavedModel, or a folder of its versions, whose names are
            numbers. Of those each worker loads the highest that is whole: one that is
            still being written is never taken, and a reload takes a newer one.
        signature: the name of the signature; by default ``predict``, or else
            ``serving_default``, or else the only one.
        extra: ``"ignore"`` drops features that the signature does not have; ``"refuse"``
            makes an error of them, as is the rule.
        missing: name → the value that stands in for None, NaN and masked values.
        allow_nan: the features whose NaN reaches the model; True for all floats. These
            three are those of `Signature.relaxed`.
        row_wise: False for a model in which the outputs of a row depend on the other rows of
            the call; every request is then a call of its own.

    The features are the inputs of the signature, with its dtypes and shapes, whose first
    axis is the row. What `predict` returns is what the signature does: name → array; text is
    ``bytes``. TensorFlow's threads are as many as the worker's device says.

    Attributes:
        method: how the model runs, once it is loaded: in a ``"session"`` or as a
            ``"function"``.
    """

    preload: tuple[str, ...] = ("tensorflow",)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        signature: str | None = None,
        extra: Extra | None = None,
        missing: Mapping[str, Any] | None = None,
        allow_nan: Literal[True] | Collection[str] | None = None,
        row_wise: bool = True,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path is {path!r}, expected the folder of a SavedModel")
        if not isinstance(signature, str | None):
            raise TypeError(
                f"signature is {signature!r}, expected the name of one that the SavedModel has; "
                "what it takes is read from the model"
            )
        self.row_wise: bool = row_wise
        self.signature: SignatureSource = "infer"
        self.method: Method | None = None
        self.source: ModelSource | None = None
        self._path = Path(path)
        self._name = signature
        self._relaxed = partial(
            Signature.relaxed, extra=extra, missing=missing, allow_nan=allow_nan
        )
        self._sparse: dict[str, FeatureSpec] = {}
        self._model: LoadedModel | None = None
        self._empty: dict[str, Array] | None = None

    def load(self, device: Device) -> None:
        """Load the model, and read its signature.

        Raises:
            FileNotFoundError: there is no SavedModel, or none that is whole.
            ValueError: it has no such signature, or one that takes what no request can have;
                or what is said of the features does not fit.
            RuntimeError: this TensorFlow cannot run it.
        """
        self.source = ModelSource.at(self._path, "saved_model")
        folder = find_model(self._path)
        require_tensorflow(self.preload)  # workers that are started afresh have not imported it
        session = Session(folder, device.threads)
        signatures = session.meta_graph.signature_def
        name = _chosen(self._name, _served(signatures), folder)
        signature = signatures[name]
        taken = _signature_of(name, signature.inputs)
        _require_arrays(signature.outputs)
        self.signature = self._relaxed(taken)
        self._sparse = {name: spec for name, spec in taken.features.items() if spec.ragged}
        self._empty = empty_outputs(signature)
        if session.holds(signature):
            self.method, self._model = "session", session.model(signature)
        else:
            session.close()
            self.method, self._model = "function", FunctionModel(folder, name, device)

    def predict(self, features: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the signature for all rows.

        Args:
            features: name → array, the first axis the row, with the dtypes and row shapes of
                the signature.

        Returns:
            name → array; the first axis is the same rows.
        """
        if self._model is None:
            raise RuntimeError("predict() before load()")
        if self._empty is not None and len(next(iter(features.values()))) == 0:
            return dict(self._empty)
        fed: dict[str, Any] = dict(features)
        for name, spec in self._sparse.items():
            fed[name] = sparse_parts(fed[name]) if len(fed[name]) else _no_parts(spec)
        return self._model.run(fed)

    def close(self) -> None:
        """Let go of the model."""
        if self._model is not None:
            self._model.close()
            self._model = None


# --- the signature -----------------------------------------------------------------


def _chosen(wanted: str | None, signatures: Collection[str], folder: Path) -> str:
    """Return the name of the signature to use."""
    if not signatures:
        raise ValueError(
            f"the SavedModel in {str(folder)!r} has no signature, so there is nothing to call: "
            "save it with signatures=, or with model.export"
        )
    if wanted is not None:
        if wanted not in signatures:
            raise ValueError(
                f"signature={wanted!r}: the SavedModel in {str(folder)!r} has "
                f"{name_list(sorted(signatures))}"
            )
        return wanted
    for name in ("predict", "serving_default"):
        if name in signatures:
            return name
    if len(signatures) > 1:
        raise ValueError(
            f"the SavedModel in {str(folder)!r} has several signatures, none of them called "
            f"predict or serving_default: say signature=, one of {name_list(sorted(signatures))}"
        )
    return next(iter(signatures))


def _signature_of(name: str, inputs: Mapping[str, Any]) -> Signature:
    """Return the features that a signature of the model takes.

    Args:
        name: of the signature, for messages.
        inputs: name → ``TensorInfo``.

    Raises:
        ValueError: an input is something that a request cannot have.
    """
    if not inputs:
        raise ValueError(f"the signature {name!r} has no inputs: there is nothing to predict from")
    return Signature({feature: _spec(feature, info) for feature, info in sorted(inputs.items())})


def _spec(name: str, info: Any) -> FeatureSpec:
    kind = info.WhichOneof("encoding")
    if kind == "composite_tensor":
        raise _unfit(
            f"input {name!r}", "is a composite tensor, and features are arrays", "take dense parts"
        )
    if not _has_arrays(info.dtype):
        said = f"has the dtype {dtype_name(info.dtype)}, which numpy lacks"
        raise _unfit(f"input {name!r}", said, "take float32 and cast it")
    shape = info.tensor_shape
    if shape.unknown_rank:
        said = "is of unknown rank, so that nobody knows what a row is"
        raise _unfit(f"input {name!r}", said, "give it a shape in input_signature")
    axes = tuple(None if axis.size < 0 else axis.size for axis in shape.dim)
    if axes[:1] != (None,):
        said = f"has the shape {list(axes)}, in which no axis is for the rows"
        raise _unfit(f"input {name!r}", said, "let its shape begin with None")
    if kind == "coo_sparse":
        if len(axes) != 2:
            said = f"is sparse and has the shape {list(axes)}"
            raise _unfit(
                f"input {name!r}", said, "make that [None, None]: rows of their own lengths"
            )
        return FeatureSpec(numpy_dtype(info.dtype), ragged=True)
    return FeatureSpec(numpy_dtype(info.dtype), axes[1:])


def _require_arrays(outputs: Mapping[str, Any]) -> None:
    for name, info in sorted(outputs.items()):
        if info.WhichOneof("encoding") != "name":
            said = "is ragged or sparse, and answers are arrays"
            remedy = "make it dense, with .to_tensor() or tf.sparse.to_dense()"
        elif not _has_arrays(info.dtype):
            said = f"has the dtype {dtype_name(info.dtype)}, which numpy lacks"
            remedy = "cast it to float32"
        else:
            continue
        raise _unfit(f"output {name!r}", said, remedy)


def _no_parts(spec: FeatureSpec) -> tuple[Array, Array, Array]:
    """Return the indices, values and dense shape of no rows."""
    return np.empty((0, 2), np.int64), np.empty(0, spec.dtype), np.zeros(2, np.int64)


def _has_arrays(dtype: int) -> bool:
    return dtype == _STRING or numpy_dtype(dtype).kind in "biufc"


def _unfit(part: str, what: str, remedy: str) -> ValueError:
    return ValueError(
        f"the {part} of the SavedModel {what}. Export the model with another signature: {remedy}"
    )


def _served(signatures: Mapping[str, Any]) -> list[str]:
    # TensorFlow 2 keeps its initialisation as a signature, too.
    return [name for name in signatures if not name.startswith("__saved_model_")]
