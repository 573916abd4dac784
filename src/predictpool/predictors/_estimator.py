"""A ``tf.estimator.Estimator`` that stays loaded.

Two ways to keep it loaded, with one contract:

``method="generator"``
    one never-ending ``estimator.predict``, fed by a generator. The idea is that of
    FastPredict by Marc Stogaitis; its published form answers with the *previous*
    caller's prediction on TensorFlow 2.11 to 2.15, because tf.data pulls an element
    ahead of the request. Here the generator blocks until a request is there, so there is
    nothing to pull ahead.
``method="session"``
    the same ``model_fn`` and checkpoint, held in a session whose ``make_callable`` is
    called with the features. Faster, and not hurt by a request that the model refuses;
    the ``before_run`` and ``after_run`` of prediction hooks are not called.

TensorFlow is imported in `EstimatorPredictor.load`, so only ever in a worker.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np

from predictpool._columns import Array
from predictpool._devices import Device
from predictpool._signature import (
    REQUIRED,
    UNNAMED,
    FeatureSpec,
    Signature,
    SignatureSource,
)

Method = Literal["generator", "session"]
Outputs = dict[str, Array]


class EstimatorPredictor:
    """Predicts with a ``tf.estimator.Estimator``; TensorFlow 2.12 to 2.15.

    Args:
        build: makes the estimator, in the worker. Estimators themselves do not pickle.
        method: ``"generator"`` or ``"session"``; see the module's docstring.
        signature: name → ``(dtype, row shape[, default])`` or ``tf.TensorSpec``; one of
            these for a model that takes a single array. Left out, it is derived from the
            feature columns of a canned estimator, or else taken from the pool's
            ``warmup`` or from the first request, where only floats and text will do.
        predict_keys: the outputs that are wanted; all by default.
        checkpoint_path: the checkpoint; the newest one in ``model_dir`` by default.

    What `predict` returns is what ``estimator.predict`` yields, as whole arrays: name →
    array, the first axis the row. A model whose predictions are a bare tensor returns
    one array.
    """

    preload: tuple[str, ...] = ("tensorflow", "tensorflow_estimator")
    row_wise: bool = True

    def __init__(
        self,
        build: Callable[[], Any],
        *,
        method: Method = "generator",
        signature: Any = None,
        predict_keys: Sequence[str] | None = None,
        checkpoint_path: str | None = None,
    ) -> None:
        if not callable(build):
            raise TypeError(
                f"build is {build!r}, expected a function that returns the estimator: "
                "estimators do not pickle, so it is made in the worker"
            )
        if method not in ("generator", "session"):
            raise ValueError(f"method is {method!r}, expected 'generator' or 'session'")
        if isinstance(predict_keys, str):
            raise TypeError(f"predict_keys is {predict_keys!r}, expected a list of names")
        self.signature: SignatureSource = (
            "infer" if signature is None else Signature.declared(signature)
        )
        self._build = build
        self._method = method
        self._predict_keys = None if predict_keys is None else list(predict_keys)
        self._checkpoint_path = checkpoint_path
        self._estimator: Any = None
        self._checkpoint = ""
        self._inferred = False
        self._model: _Model | None = None
        self._empty: Any = None

    def load(self, device: Device) -> None:
        """Build the estimator and find its checkpoint and its signature.

        Raises:
            FileNotFoundError: there is no checkpoint: the model was never trained.
            RuntimeError: this TensorFlow has no Estimators.
        """
        _require_estimators()
        self._estimator = self._build()
        self._checkpoint = _find_checkpoint(self._estimator, self._checkpoint_path)
        if self.signature == "infer":
            self.signature = _derive_signature(self._estimator) or "infer"
        self._inferred = self.signature == "infer"

    def predict(self, features: Any) -> Any:
        """Return the predictions for all rows.

        Args:
            features: a mapping of name to array, or one array, the first axis the row,
                with the dtypes and row shapes of the signature.

        Returns:
            name → array, or one array; the first axis is the same rows.
        """
        if self._estimator is None:
            raise RuntimeError("predict() before load()")
        signature = self._signature_for(features)
        if len(_any_array(features)) == 0:
            return self._no_rows(signature)
        if self._model is None:
            self._model = self._start(signature)
        try:
            outputs = self._model.run(features)
        except Exception:
            # A model built for features that it cannot take is of no use to the next.
            if not self._model.usable or self.signature == "infer":
                self.close()
            raise
        self.signature = signature
        return outputs

    def close(self) -> None:
        """End the model, so that its hooks run to their end."""
        model, self._model = self._model, None
        if model is not None:
            model.close()
            # Graph and session hold each other; a rebuilt model would pile up on them.
            gc.collect()

    def _signature_for(self, features: Any) -> Signature:
        if isinstance(self.signature, Signature) and not self._inferred:
            return self.signature
        # The pool sends one signature only, once a first request has been answered; until
        # then another worker may have settled on other features than this one.
        exact = _exact_signature(features)
        if exact != self.signature:
            self.close()
            self.signature, self._empty = "infer", None
        return exact

    def _start(self, signature: Signature) -> _Model:
        if self._predict_keys is not None:
            self._no_rows(signature)  # refuses unknown keys, which estimator.predict ignores
        model = _GeneratorModel if self._method == "generator" else _SessionModel
        return model(self._estimator, self._checkpoint, signature, self._predict_keys)

    def _no_rows(self, signature: Signature) -> Any:
        """Return empty outputs, their dtypes and shapes read off the graph."""
        if self._empty is None:
            import tensorflow as tf

            with tf.Graph().as_default():
                predictions, _, _ = _build_graph(self._estimator, signature)
                chosen = _choose(predictions, self._predict_keys)
                if isinstance(chosen, dict):
                    self._empty = {name: _empty_like(t) for name, t in chosen.items()}
                else:
                    self._empty = _empty_like(chosen)
        return dict(self._empty) if isinstance(self._empty, dict) else self._empty


class _Model(Protocol):
    usable: bool

    def run(self, features: Any) -> Any: ...

    def close(self) -> None: ...


# --- method="generator" ------------------------------------------------------------

_END = object()


class _GeneratorModel:
    """One never-ending ``estimator.predict``; dead after the first error in it."""

    def __init__(
        self,
        estimator: Any,
        checkpoint: str,
        signature: Signature,
        predict_keys: list[str] | None,
    ) -> None:
        self.usable = True
        self._begun = False
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._estimator = estimator
        self._answers = estimator.predict(
            lambda: self._dataset(signature),
            hooks=[_release_hook(self._requests)],
            predict_keys=predict_keys,
            checkpoint_path=checkpoint,
            yield_single_examples=False,
        )

    def run(self, features: Any) -> Any:
        self._requests.put(features)
        try:
            answer = next(self._answers) if self._begun else self._begin()
        except StopIteration:
            self.usable = False
            raise RuntimeError("estimator.predict ended by itself") from None
        except Exception:
            self.usable = False
            raise
        return answer

    def _begin(self) -> Any:
        """Get the first answer, for which graph and session are made."""
        self._begun = True
        return _without_autograph(self._estimator, lambda: next(self._answers))

    def close(self) -> None:
        # The sentinel lets TensorFlow's own thread out of the blocking generator, and
        # exhausting the iterator, unlike closing it, calls the hooks' end().
        self._requests.put(_END)
        for _ in self._answers:
            raise RuntimeError("estimator.predict answered a request that was never made")

    def _dataset(self, signature: Signature) -> Any:
        import tensorflow as tf

        specs = {
            name: tf.TensorSpec([None, *spec.shape], _tf_dtype(spec.dtype), name=name or None)
            for name, spec in signature.features.items()
        }
        return tf.data.Dataset.from_generator(
            self._pending, output_signature=specs[UNNAMED] if signature.unnamed else specs
        )

    def _pending(self) -> Iterator[Any]:
        """Yield requests, blocking until there is one: nothing can be pulled ahead."""
        while (features := self._requests.get()) is not _END:
            yield features


def _release_hook(requests: queue.SimpleQueue[Any]) -> Any:
    """Return a hook that ends the generator when TensorFlow ends the session by itself.

    After an error in the model TensorFlow closes the session before it raises, and waits
    in there for its own thread, which waits in our generator for a request.
    """
    import tensorflow as tf

    class Release(tf.estimator.SessionRunHook):  # type: ignore[misc]
        def after_create_session(self, session: Any, coord: Any) -> None:
            def wait() -> None:
                coord.wait_for_stop()
                requests.put(_END)

            threading.Thread(target=wait, name="release", daemon=True).start()

    return Release()


# --- method="session" --------------------------------------------------------------


class _SessionModel:
    """The model's graph and checkpoint, held in a session."""

    def __init__(
        self,
        estimator: Any,
        checkpoint: str,
        signature: Signature,
        predict_keys: list[str] | None,
    ) -> None:
        import tensorflow as tf

        self.usable = True
        self._names = list(signature.features)
        with tf.Graph().as_default():
            predictions, placeholders, spec = _without_autograph(
                estimator, lambda: _build_graph(estimator, signature)
            )
            fetches = _choose(predictions, predict_keys)
            creator = tf.compat.v1.train.ChiefSessionCreator(
                scaffold=spec.scaffold,
                checkpoint_filename_with_path=checkpoint,
                config=estimator.config.session_config
                or tf.compat.v1.ConfigProto(allow_soft_placement=True),
            )
            self._session = tf.compat.v1.train.MonitoredSession(
                session_creator=creator, hooks=spec.prediction_hooks
            )
        raw = self._session.run_step_fn(lambda step_context: step_context.session)
        self._call = raw.make_callable(
            fetches, feed_list=[placeholders[name] for name in self._names]
        )

    def run(self, features: Any) -> Any:
        if isinstance(features, Mapping):
            return self._call(*(features[name] for name in self._names))
        return self._call(features)

    def close(self) -> None:
        self._session.close()


# --- graph, checkpoint, signature --------------------------------------------------


def _build_graph(estimator: Any, signature: Signature) -> tuple[Any, dict[str, Any], Any]:
    """Build the prediction graph over placeholders, in the current default graph.

    Returns:
        the predictions, the placeholders by name, and the EstimatorSpec.
    """
    import tensorflow as tf

    tf.compat.v1.set_random_seed(estimator.config.tf_random_seed)
    tf.compat.v1.train.create_global_step()
    placeholders = {
        name: tf.compat.v1.placeholder(_tf_dtype(spec.dtype), [None, *spec.shape])
        for name, spec in signature.features.items()
    }
    features = placeholders[UNNAMED] if signature.unnamed else dict(placeholders)
    spec = estimator.model_fn(features, None, tf.estimator.ModeKeys.PREDICT, estimator.config)
    return spec.predictions, placeholders, spec


def _without_autograph(estimator: Any, build: Callable[[], Any]) -> Any:
    """Build without AutoGraph what does not need it: the graphs of canned estimators.

    It takes a quarter of their start (and 14 MB) to find nothing to convert. A model
    function of the user's may have something.
    """
    import tensorflow as tf

    kind = type(estimator)
    theirs = kind.__module__.startswith("tensorflow_estimator.")
    canned = theirs and kind is not tf.estimator.Estimator
    return tf.autograph.experimental.do_not_convert(build)() if canned else build()


def _choose(predictions: Any, predict_keys: list[str] | None) -> Any:
    if predict_keys is None:
        return predictions
    if not isinstance(predictions, dict):
        raise ValueError(  # noqa: TRY004 - it is the value of predict_keys that is wrong
            f"predict_keys={predict_keys}, but the predictions of this model are one array "
            "without keys: leave predict_keys out"
        )
    unknown = [key for key in predict_keys if key not in predictions]
    if unknown:
        raise ValueError(f"predict_keys names {unknown}; this model has {sorted(predictions)}")
    return {key: value for key, value in predictions.items() if key in predict_keys}


def _empty_like(tensor: Any) -> Array:
    shape = tensor.shape[1:] if tensor.shape.rank else ()
    dtype = object if tensor.dtype.name == "string" else tensor.dtype.as_numpy_dtype
    return np.empty((0, *(axis or 0 for axis in shape)), dtype)


def _tf_dtype(dtype: np.dtype[Any]) -> Any:
    import tensorflow as tf

    return tf.string if dtype.kind == "O" else tf.as_dtype(dtype)


def _require_estimators() -> None:
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'TensorFlow is not installed: pip install "predictpool[estimator]" (Python 3.11)',
            name=error.name,
        ) from error
    if not hasattr(tf, "estimator"):
        raise RuntimeError(
            f"TensorFlow {tf.__version__} has no Estimators, 2.15 was the last: "
            'pip install "predictpool[estimator]" on Python 3.11, or export the model as a '
            "SavedModel"
        )


def _find_checkpoint(estimator: Any, given: str | None) -> str:
    import tensorflow as tf

    if given is not None:
        if not tf.compat.v1.train.checkpoint_exists(given):
            raise FileNotFoundError(f"checkpoint_path={given!r}: there is no such checkpoint")
        return given
    newest = estimator.latest_checkpoint()
    if newest is None:
        raise FileNotFoundError(
            f"no checkpoint in model_dir={estimator.model_dir!r}: an untrained model would "
            "predict from random weights. Train it first, or correct the path"
        )
    return cast(str, newest)


def _derive_signature(estimator: Any) -> Signature | None:
    """Read the signature off the feature columns of a canned estimator.

    They are found in the closure of its model function, which is private; but
    tensorflow-estimator ended at 2.15.0, so it will not change. None where there are no
    feature columns.
    """
    import tensorflow as tf

    closure = getattr(getattr(estimator, "_model_fn", None), "__closure__", None) or ()
    code = getattr(getattr(estimator, "_model_fn", None), "__code__", None)
    cells = dict(zip(code.co_freevars, closure, strict=True)) if code else {}
    columns: list[Any] = []
    for name in ("feature_columns", "linear_feature_columns", "dnn_feature_columns"):
        if name in cells:
            columns.extend(cells[name].cell_contents or ())
    if not columns:
        return None
    parsed = tf.feature_column.make_parse_example_spec(columns)
    return Signature({name: _spec_of(feature) for name, feature in sorted(parsed.items())})


def _spec_of(feature: Any) -> FeatureSpec:
    dtype = np.dtype(object) if feature.dtype.name == "string" else feature.dtype.as_numpy_dtype
    if hasattr(feature, "default_value"):
        default = REQUIRED if feature.default_value is None else feature.default_value
        return FeatureSpec(np.dtype(dtype), tuple(feature.shape), default)
    # A VarLenFeature says nothing of the shape; one value a row is what users send.
    return FeatureSpec(np.dtype(dtype))


def _exact_signature(features: Any) -> Signature:
    """Take the signature from arrays that the pool has brought to their dtypes already."""
    named = features if isinstance(features, Mapping) else {UNNAMED: features}
    return Signature(
        {name: FeatureSpec(values.dtype, values.shape[1:]) for name, values in named.items()}
    )


def _any_array(features: Any) -> Array:
    if isinstance(features, Mapping):
        return cast(Array, next(iter(features.values())))
    return cast(Array, features)
