"""The two ways to keep a SavedModel loaded, with one contract: `LoadedModel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from predictpool._columns import Array
from predictpool._devices import Device
from predictpool.predictors._model_files import MODEL_FILE, read_contents
from predictpool.predictors._tensorflow import limit_threads

SERVE = "serve"


class LoadedModel(Protocol):
    """A model that is loaded."""

    def run(self, features: dict[str, Any]) -> dict[str, Array]:
        """Return the outputs by name, sorted.

        Args:
            features: what is fed for each input: an array, or the indices, values and dense
                shape of a sparse one.
        """

    def close(self) -> None:
        """Let go of the model."""


class Session:
    """A SavedModel in a session of TensorFlow 1, in which its signatures are read."""

    def __init__(self, folder: Path, threads: int) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        config = v1.ConfigProto(
            intra_op_parallelism_threads=threads,
            inter_op_parallelism_threads=threads,
            allow_soft_placement=True,  # a model exported on a GPU may name it
        )
        self._graph = tf.Graph()
        self._session = v1.Session(graph=self._graph, config=config)
        with self._graph.as_default(), _quiet(tf), _explained(folder):
            self.meta_graph = v1.saved_model.load(self._session, [SERVE], str(folder))

    def holds(self, signature: Any) -> bool:
        """Whether all that the signature needs was restored into the session.

        Keras 3 puts every variable of ``tf.saved_model.save(model)`` into the graph twice and
        has the saver of TensorFlow 1 restore the copy that nobody uses; and a model may be
        saved without such a saver.
        """
        import tensorflow as tf

        meta_graph = self.meta_graph
        if meta_graph.HasField("object_graph_def") and not meta_graph.saver_def.restore_op_name:
            return False
        outputs = [self._graph.get_tensor_by_name(name) for name in _names(signature.outputs)]
        with self._graph.as_default():
            checks = [
                tf.raw_ops.VarIsInitializedOp(resource=operation.outputs[0])
                for operation in _behind(outputs)
                if operation.type == "VarHandleOp"
            ]
        return all(self._session.run(checks))

    def model(self, signature: Any) -> SessionModel:
        """Return the model of one of the signatures."""
        feeds = [name for _, info in sorted(signature.inputs.items()) for name in _fed(info)]
        fetches = {name: info.name for name, info in sorted(signature.outputs.items())}
        tensors = [self._graph.get_tensor_by_name(name) for name in feeds]
        return SessionModel(self._session, fetches, tensors)

    def close(self) -> None:
        """Let go of the model."""
        self._session.close()


class SessionModel:
    """One signature of a SavedModel in a session."""

    def __init__(self, session: Any, fetches: dict[str, str], feeds: list[Any]) -> None:
        self._session = session
        self._call = session.make_callable(fetches, feed_list=feeds)

    def run(self, features: dict[str, Any]) -> dict[str, Array]:
        fed = [
            part
            for _, value in sorted(features.items())
            for part in (value if type(value) is tuple else (value,))
        ]
        outputs: dict[str, Array] = self._call(*fed)
        return outputs

    def close(self) -> None:
        self._session.close()


class FunctionModel:
    """One signature of a SavedModel as a function of TensorFlow 2."""

    def __init__(self, folder: Path, name: str, device: Device) -> None:
        import tensorflow as tf

        limit_threads(device)
        self._tensor = tf.constant
        with _explained(folder):
            self._root = tf.saved_model.load(str(folder), tags=[SERVE])  # owns the variables
        self._function = self._root.signatures[name]

    def run(self, features: dict[str, Any]) -> dict[str, Array]:
        fed = {name: self._tensor(values) for name, values in features.items()}
        outputs = self._function(**fed)
        return {name: outputs[name].numpy() for name in sorted(outputs)}

    def close(self) -> None:
        self._root = self._function = None


def _fed(info: Any) -> list[str]:
    """Return the names of the tensors of an input."""
    if info.WhichOneof("encoding") == "coo_sparse":
        sparse = info.coo_sparse
        return [
            sparse.indices_tensor_name,
            sparse.values_tensor_name,
            sparse.dense_shape_tensor_name,
        ]
    return [info.name]


def _names(outputs: Any) -> list[str]:
    return [info.name for info in outputs.values()]


def _behind(tensors: Iterable[Any]) -> Iterator[Any]:
    """Yield the operations that tensors are computed from."""
    pending = [tensor.op for tensor in tensors]
    seen = set()
    while pending:
        operation = pending.pop()
        if operation not in seen:
            seen.add(operation)
            yield operation
            pending += [tensor.op for tensor in operation.inputs]
            pending += operation.control_inputs


@contextmanager
def _quiet(tf: Any) -> Iterator[None]:
    """Keep TensorFlow from advising, for every worker, to load models as functions."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


# --- what this TensorFlow cannot load ----------------------------------------------

_OPERATION = re.compile(r"(?:Op type not registered|registered to support Op) '(\w+)'")
_TAGS = re.compile(r"available tags '\[(.*)\]'")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what to do about a model that this TensorFlow cannot load."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        explanation = _explanation(folder, str(error))
        if explanation is None:
            raise
        raise RuntimeError(explanation) from error


def _explanation(folder: Path, said: str) -> str | None:
    import tensorflow as tf

    here = f"TensorFlow {tf.__version__}"
    model = f"the SavedModel in {str(folder)!r}"
    wrote = read_contents(folder / MODEL_FILE).version
    if wrote:
        model += f" (written by TensorFlow {wrote})"
    if operation := _OPERATION.search(said):
        return f"{model} needs the operation {operation[1]}, which {here} " + _remedy(operation[1])
    if "min consumer version" in said:
        return f"{model} is too new for {here}: install TensorFlow {wrote} or newer"
    if tags := _TAGS.search(said):
        return (
            f"{model} has no graph with the tag 'serve', only {tags[1] or 'ones without tags'}: "
            "export it for serving"
        )
    return None


def _remedy(operation: str) -> str:
    if operation.startswith("BoostedTrees"):
        return (
            "cannot run: TensorFlow 2.8 was the last that could. Retrain the model with a library "
            "for trees that is alive, such as TensorFlow Decision Forests or XGBoost"
        )
    return (
        "does not have. If it comes with a library, have that imported before the model is "
        "loaded: predictor.preload += ('tensorflow_text',), for example; if it is "
        "TensorFlow's, install the version that wrote the model"
    )


# --- arrays ------------------------------------------------------------------------


def empty_outputs(signature: Any) -> dict[str, Array] | None:
    """Return the outputs for no rows, read off the signature; None where it does not say."""
    shapes = [info.tensor_shape for info in signature.outputs.values()]
    if any(shape.unknown_rank or not shape.dim for shape in shapes):
        return None
    return {name: _no_rows(info) for name, info in sorted(signature.outputs.items())}


def _no_rows(info: Any) -> Array:
    axes = (axis.size for axis in info.tensor_shape.dim[1:])
    return np.empty((0, *(max(axis, 0) for axis in axes)), numpy_dtype(info.dtype))


def numpy_dtype(number: int) -> np.dtype[Any]:
    """Return the dtype of arrays for a dtype of TensorFlow's, given by its number."""
    import tensorflow as tf

    return np.dtype(tf.as_dtype(number).as_numpy_dtype)


def dtype_name(number: int) -> str:
    """Return the name of a dtype of TensorFlow's, given by its number."""
    import tensorflow as tf

    return str(tf.as_dtype(number).name)
