"""An Estimator's model as a SavedModel, which later versions of TensorFlow can load.

The graph is that of ``method="session"``. Both signatures that tools look for, ``predict`` and
``serving_default``, have the features of a request and all predictions, under their own names:
what an Estimator exports itself has other outputs in each signature, if it has both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from predictpool._devices import Device
from predictpool._features._signature import Signature, as_arrays
from predictpool._features._spec import UNNAMED
from predictpool.predictors._estimator import EstimatorPredictor, require_known_predict
from predictpool.predictors._estimator_inputs import EstimatorInputs
from predictpool.predictors._estimator_models import Checkpoint, build_graph, without_autograph

SIGNATURES = ("predict", "serving_default")

# What a model calls that takes or returns a bare array: the names that Estimators give, too.
INPUT, OUTPUT = "input", "output"

_PYTHON_OPS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})


@dataclass(frozen=True)
class Answer:
    """What an `ExportingPredictor` returns.

    Attributes:
        outputs: what ``estimator.predict`` says.
        tensorflow: the version that wrote the SavedModel.
        hooks: the types of the hooks that are not in it.
    """

    outputs: Any
    tensorflow: str
    hooks: tuple[str, ...]


class ExportingPredictor(EstimatorPredictor):
    """Exports the model of another predictor when it is loaded, and then predicts as that does.

    Args:
        predictor: of the model.
        folder: where the SavedModel goes; it must not be there yet.
        example: features that say what the signature does not; None for none.
    """

    def __init__(self, predictor: EstimatorPredictor, folder: str, example: Any) -> None:
        vars(self).update(vars(predictor))
        self.method = "generator"  # which is estimator.predict itself
        self.row_wise = False
        self._folder = folder
        self._example = example
        self._hooks: tuple[str, ...] = ()

    def load(self, device: Device) -> None:
        """Load the estimator, and export it.

        Raises:
            ValueError: it cannot be exported, or it is not known which features it takes.
        """
        super().load(device)
        assert self._checkpoint is not None
        inputs = EstimatorInputs(self._known_signature(), self._transform)
        self._hooks = export(self._checkpoint, inputs, self._folder)

    def predict(self, features: Any) -> Answer:
        """Return what ``estimator.predict`` says, with what there is to say of the export."""
        import tensorflow as tf

        return Answer(super().predict(features), tf.__version__, self._hooks)

    def _known_signature(self) -> Signature:
        if isinstance(self.signature, Signature):
            return self.signature
        if self._example is None:
            raise ValueError(
                "nobody knows what this estimator takes: it has no feature columns to read it "
                "from. Declare it, EstimatorPredictor(build, signature=...), or name features "
                "that are floats or text with --features MODULE:FEATURES"
            )
        return Signature.inferred(as_arrays(self._example)[0])


def export(checkpoint: Checkpoint, inputs: EstimatorInputs, folder: str) -> tuple[str, ...]:
    """Write the model as a SavedModel.

    Returns:
        the types of the prediction hooks, which are Python and not in it.

    Raises:
        ValueError: the model calls Python, or the estimator has a ``predict`` of its own.
    """
    import tensorflow as tf

    estimator = checkpoint.estimator
    require_known_predict(estimator, "a SavedModel", "Only an EstimatorPredictor can serve it")
    with tf.Graph().as_default() as graph:
        fetches, placeholders, spec = without_autograph(
            estimator, lambda: build_graph(checkpoint, inputs)
        )
        _require_no_python(graph)
        signature = _signature_def(inputs.by_name(placeholders), fetches)
        # Not scaffold.finalize(), which makes these, too: nothing can be added afterwards.
        saver = spec.scaffold.saver or tf.compat.v1.train.Saver(sharded=True)
        with tf.compat.v1.Session(config=estimator.config.session_config) as session:
            saver.restore(session, checkpoint.path)
            _write(session, saver, spec.scaffold.local_init_op, signature, folder)
    return tuple(type(hook).__name__ for hook in spec.prediction_hooks or ())


def _signature_def(features: dict[str, Any], fetches: Any) -> Any:
    from tensorflow.compat.v1 import saved_model

    outputs = fetches if isinstance(fetches, dict) else {OUTPUT: fetches}
    return saved_model.build_signature_def(
        {exported_name(name): saved_model.build_tensor_info(t) for name, t in features.items()},
        {name: saved_model.build_tensor_info(t) for name, t in outputs.items()},
        saved_model.signature_constants.PREDICT_METHOD_NAME,
    )


def _write(session: Any, saver: Any, local_init: Any, signature: Any, folder: str) -> None:
    import tensorflow as tf

    if local_init is None:
        local_init = tf.compat.v1.train.Scaffold.default_local_init_op()
    saved_model = tf.compat.v1.saved_model
    builder = saved_model.Builder(folder)
    builder.add_meta_graph_and_variables(
        session,
        [saved_model.tag_constants.SERVING],
        dict.fromkeys(SIGNATURES, signature),
        tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS),
        clear_devices=True,  # who serves it has others than who trained it
        main_op=local_init,
        strip_default_attrs=True,  # so that other versions than this one know all that is left
        saver=saver,
    )
    builder.save()


def _require_no_python(graph: Any) -> None:
    nodes = [node.name for node in _nodes(graph.as_graph_def()) if node.op in _PYTHON_OPS]
    if nodes:
        raise ValueError(
            f"the model calls a Python function in {', '.join(nodes)} (tf.py_function, "
            "tf.numpy_function or a generator), and a SavedModel has none: compute it with "
            "TensorFlow's own operations, or before the request"
        )


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def exported_name(name: str) -> str:
    """Return what a feature is called in the SavedModel."""
    return INPUT if name == UNNAMED else name
