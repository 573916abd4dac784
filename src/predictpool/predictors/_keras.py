"""A Keras model that stays loaded: one traced function, called for every request.

``model(x, training=False)`` is traced once, for any number of rows. That is neither
``model.predict``, which sets up an input pipeline for every call, nor a session: a frozen
graph in one answers a tenth of a millisecond sooner and takes no vocabularies.

TensorFlow is imported in `KerasPredictor.load`, so only ever in a worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from predictpool._columns import Array
from predictpool._devices import Device
from predictpool._features._signature import Extra, Signature, SignatureSource
from predictpool._features._spec import UNNAMED
from predictpool.predictors._keras_file import load_file
from predictpool.predictors._source import ModelSource
from predictpool.predictors._tensorflow import empty_like, limit_threads, require_tensorflow


class KerasPredictor:
    """Predicts with a Keras model, in inference mode; Keras 2 and 3, TensorFlow 2.12 or newer.

    Args:
        model: the path of a ``.keras`` or ``.h5`` file; or a function that returns the model,
            which runs in the worker: where layers of your own have to be imported first,
            where there are weights only, or where no file says what the model takes.
        extra: ``"ignore"`` drops features that the model does not take, such as the unused
            columns of a CSV file; ``"refuse"`` makes an error of them, as is the rule.
        missing: name → the value that stands in for None, NaN and masked values.
        allow_nan: the features whose NaN reaches the model; True for all floats. These
            three are those of `Signature.relaxed`.
        row_wise: False for a model in which the outputs of a row depend on the other rows of
            the call; every request is then a call of its own.

    The signature is read off the model's inputs, and known when it has been loaded. A model
    with one input takes one array; with a dict of inputs a mapping with its keys; with a list
    of inputs a mapping with the names of the inputs.

    What `predict` returns is what ``model(x, training=False)`` returns, as numpy arrays: an
    array, or a mapping with the keys of a dict. A list of outputs becomes a mapping with the
    model's ``output_names``; where a layer has several, they are numbered: ``lstm``,
    ``lstm_1``. Dicts and lists in others have their keys joined by "/".
    """

    preload: tuple[str, ...] = ("tensorflow", "keras")

    def __init__(
        self,
        model: str | os.PathLike[str] | Callable[[], Any],
        *,
        extra: Extra | None = None,
        missing: Mapping[str, Any] | None = None,
        allow_nan: Literal[True] | Collection[str] | None = None,
        row_wise: bool = True,
    ) -> None:
        if _is_model(model) or not (callable(model) or isinstance(model, str | os.PathLike)):
            raise TypeError(
                f"model is {model!r}, expected the path of a .keras or .h5 file, or a function "
                "that returns the model: it is loaded in the worker"
            )
        self.row_wise: bool = row_wise
        self.signature: SignatureSource = "infer"
        self.source: ModelSource | None = None
        self._path = None if callable(model) else os.fspath(model)
        self._load = model if callable(model) else partial(load_file, os.fspath(model))
        self._relaxed = partial(
            Signature.relaxed, extra=extra, missing=missing, allow_nan=allow_nan
        )
        self._call: Callable[[Any], Any] | None = None

    def load(self, device: Device) -> None:
        """Load the model, read its signature, and trace it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: Keras cannot load the file; or the model does not tell its inputs, or
                keeps a state; or what is said of the signature does not fit it.
            TypeError: the function returned no model; or the model has inputs or outputs
                that are no dense arrays.
            RuntimeError: Keras runs on another backend than TensorFlow.
        """
        _require_keras()
        limit_threads(device)
        if self._path is not None:
            self.source = ModelSource.at(self._path, "file")
        model = self._load()
        if not _is_model(model):
            raise TypeError(f"{self._load!r} returned {model!r}, expected a Keras model")
        _refuse_state(model)
        inputs = _inputs_of(model)
        self.signature = self._relaxed(Signature.declared(inputs.specs))
        self._call = _Call(model, inputs)

    def predict(self, features: Any) -> Any:
        """Return the outputs for all rows.

        Args:
            features: a mapping of name to array, or one array, the first axis the row,
                with the dtypes and row shapes of the signature.

        Returns:
            name → array, or one array; the first axis is the same rows.
        """
        if self._call is None:
            raise RuntimeError("predict() before load()")
        return self._call(features)

    def close(self) -> None:
        """Forget the model."""
        self._call = None


# --- TensorFlow and Keras ----------------------------------------------------------


def _require_keras() -> None:
    """Raise unless Keras is there and runs on TensorFlow."""
    require_tensorflow()
    import tensorflow as tf

    chosen = {name: os.environ.get(name) for name in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")}
    said = ", ".join(f"{name}={value}" for name, value in chosen.items() if value)
    try:
        backend = tf.keras.backend.backend()
    except ImportError as error:
        raise ImportError(
            f"TensorFlow {tf.__version__} cannot import Keras ({said or error}): unset that, or "
            "install what it asks for (tf_keras, for TF_USE_LEGACY_KERAS=1)"
        ) from error
    if backend != "tensorflow":
        raise RuntimeError(
            f"Keras runs on {backend} ({said or 'says its keras.json'}), and KerasPredictor runs "
            "models on TensorFlow: set KERAS_BACKEND=tensorflow, which reads the same .keras "
            "files, or wrap the model in a FunctionPredictor"
        )


def _is_model(value: Any) -> bool:
    """Whether it is a model of Keras 2, Keras 3 or tf_keras, none of which is imported here."""
    return any(
        base.__name__ == "Model" and base.__module__.partition(".")[0] in ("keras", "tf_keras")
        for base in type(value).__mro__
    )


# --- inputs ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """What a model takes.

    Attributes:
        structure: the model's symbolic inputs as it wants them: a dict, a list or one.
        specs: name → ``tf.TensorSpec`` or ``tf.RaggedTensorSpec``, in the same order.
    """

    structure: Any
    specs: dict[str, Any]

    def argument(self, tensors: Sequence[Any]) -> Any:
        """Return tensors in this order as the model wants them."""
        if isinstance(self.structure, Mapping):
            return dict(zip(self.structure, tensors, strict=True))
        return list(tensors) if isinstance(self.structure, list | tuple) else tensors[0]


def _refuse_state(model: Any) -> None:
    """Raise where an answer depends on the calls before."""
    for layer in model._flatten_layers():  # noqa: SLF001 - no public name has the inner ones
        if not _is_model(layer) and getattr(layer, "stateful", False):
            raise ValueError(
                f"layer {layer.name!r} keeps its state from call to call (stateful=True), so one "
                "caller's answer would depend on another's: build the model with stateful=False"
            )


def _inputs_of(model: Any) -> _Inputs:
    structure = _input_structure(model)
    if isinstance(structure, Mapping):
        return _Inputs(structure, {str(key): _spec(key, one) for key, one in structure.items()})
    if not isinstance(structure, list | tuple):
        return _Inputs(structure, {UNNAMED: _spec(UNNAMED, structure)})
    if len(structure) == 1:
        return _Inputs(structure, {UNNAMED: _spec(UNNAMED, structure[0])})
    return _Inputs(
        structure,
        {
            getattr(one, "name", str(index)): _spec(index, one)
            for index, one in enumerate(structure)
        },
    )


def _input_structure(model: Any) -> Any:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ValueError(
            f"the model {model.name!r} ({type(model).__name__}) does not say what it takes: begin "
            "a Sequential with keras.Input(shape=...); for a subclass of Model, give "
            "KerasPredictor a function that returns keras.Model(inputs, model(inputs)), where "
            "inputs = keras.Input(shape=...)"
        )
    try:
        return model.input
    except (AttributeError, ValueError):  # a Sequential of Keras 3
        (only,) = inputs
        return only


def _spec(key: object, tensor: Any) -> Any:
    """Return the spec of an input whose row axis is free, whatever batch it was built with."""
    import tensorflow as tf

    if isinstance(tensor, Mapping | list | tuple):
        raise TypeError(
            f"input {key!r} of the model is a {type(tensor).__name__} of inputs, expected one "
            "tensor: make its inputs a dict or a list of keras.Input, not one inside another"
        )
    kind = type(getattr(tensor, "type_spec", None)).__name__  # of Keras 2
    if kind == "SparseTensorSpec" or getattr(tensor, "sparse", False):
        raise TypeError(
            f"input {tensor.name!r} of the model is sparse, and requests have dense arrays: make "
            "it dense, keras.Input(..., sparse=False)"
        )
    shape = [None, *tensor.shape[1:]]
    if kind == "RaggedTensorSpec" or getattr(tensor, "ragged", False):
        return tf.RaggedTensorSpec(shape, tensor.dtype, ragged_rank=1)
    return tf.TensorSpec(shape, tensor.dtype)


# --- the call ----------------------------------------------------------------------


class _Call:
    """A model's traced call, from arrays to arrays."""

    def __init__(self, model: Any, inputs: _Inputs) -> None:
        import tensorflow as tf

        # AutoGraph is for the layers, which Keras 2 may have written for it; not for ours.
        argument, named = map(tf.autograph.experimental.do_not_convert, (inputs.argument, _named))

        @tf.function(input_signature=list(inputs.specs.values()))  # type: ignore[untyped-decorator]
        def call(*tensors: Any) -> Any:
            return named(model, model(argument(tensors), training=False))

        self._function = call.get_concrete_function()
        self._model = model  # the function holds its variables only weakly
        self._symbolic = self._function.structured_outputs
        _require_dense(self._symbolic)
        self._unnamed = UNNAMED in inputs.specs
        self._feeds = {
            name: partial(
                _ragged_tensor if isinstance(spec, tf.RaggedTensorSpec) else tf.constant,
                dtype=spec.dtype,
            )
            for name, spec in inputs.specs.items()
        }

    def __call__(self, features: Any) -> Any:
        named = {UNNAMED: features} if self._unnamed else features
        if len(next(iter(named.values()))) == 0:
            # TensorFlow fails on them where it has fused a matrix product with its bias.
            return _each(empty_like, self._symbolic)
        outputs = self._function(*[feed(named[name]) for name, feed in self._feeds.items()])
        return _each(_array_of, outputs)


def _each(function: Callable[[Any], Any], outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: function(tensor) for name, tensor in outputs.items()}
    return function(outputs)


def _array_of(tensor: Any) -> Any:
    return tensor.numpy()


def _ragged_tensor(rows: Array, dtype: Any) -> Any:
    """Return rows of their own lengths as a RaggedTensor."""
    import tensorflow as tf

    # With something of the dtype in front, no rows have one too.
    values = np.concatenate([np.empty(0, dtype.as_numpy_dtype), *rows])
    lengths = np.array([len(row) for row in rows], np.int64)
    return tf.RaggedTensor.from_row_lengths(tf.constant(values, dtype), lengths, validate=False)


# --- outputs -----------------------------------------------------------------------


def _named(model: Any, outputs: Any) -> Any:
    """Return outputs as one tensor or a mapping of name to tensor, as numpy can have them."""
    if not isinstance(outputs, Mapping | list | tuple):
        return _widened(outputs)
    leaves = list(_leaves(outputs))
    if isinstance(outputs, Mapping):
        names = [path for path, _ in leaves]
    elif len(leaves) == 1:
        return _widened(leaves[0][1])
    else:
        names = _output_names(model, [path for path, _ in leaves])
    return dict(zip(names, (_widened(tensor) for _, tensor in leaves), strict=True))


def _widened(tensor: Any) -> Any:
    """Return bfloat16, which numpy does not have, as the float32 that has the same values."""
    import tensorflow as tf

    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor


def _leaves(outputs: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor with its keys on the way to it, joined by "/"."""
    if isinstance(outputs, Mapping):
        items = list(outputs.items())
    elif isinstance(outputs, list | tuple):
        items = list(enumerate(outputs))
    else:
        yield path, outputs
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}/{key}" if path else str(key))


def _output_names(model: Any, paths: list[str]) -> list[str]:
    """Return the model's names for a list of outputs, numbered where a layer has several.

    Keras 3 repeats the layer's name, and Keras 2 numbers it. Where lists are in the list
    there is no name for each, and the paths have to do.
    """
    names = getattr(model, "output_names", None) or []
    if len(names) != len(paths):
        return paths
    return [
        f"{name}_{names[:index].count(name)}" if name in names[:index] else name
        for index, name in enumerate(names)
    ]


def _require_dense(outputs: Any) -> None:
    import tensorflow as tf

    for name, tensor in outputs.items() if isinstance(outputs, dict) else [("", outputs)]:
        if not isinstance(tensor, tf.Tensor | tf.TensorSpec):
            raise TypeError(
                f"output {name!r} of the model is a {type(tensor).__name__}, expected a dense "
                "tensor: end it with .to_tensor() or tf.sparse.to_dense"
            )
