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
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

from predictpool._columns import Array
from predictpool._devices import Device
from predictpool._features._signature import Extra, Signature, SignatureSource
from predictpool._features._spec import UNNAMED, FeatureSpec
from predictpool.predictors._canned import derive_signature
from predictpool.predictors._estimator_inputs import EstimatorInputs, Transform
from predictpool.predictors._estimator_models import (
    Checkpoint,
    GeneratorModel,
    Model,
    SessionModel,
    empty_outputs,
    prediction_name,
)
from predictpool.predictors._source import ModelSource
from predictpool.predictors._tensorflow import require_tensorflow

Method = Literal["generator", "session"]


class EstimatorPredictor:
    """Predicts with a ``tf.estimator.Estimator``; TensorFlow 2.12 to 2.15.

    Args:
        build: makes the estimator, in the worker. Estimators themselves do not pickle.
        method: ``"generator"`` or ``"session"``; see the module's docstring.
        signature: name → ``(dtype, row shape[, default])``, ``tf.TensorSpec`` or
            ``tf.io.FixedLenFeature``; one of these for a model that takes a single array.
            Left out, it is derived from the feature columns of a canned estimator, or else
            taken from the pool's ``warmup`` or from the first request, where only floats
            and text will do.
        extra: ``"ignore"`` drops features that the signature does not have, such as the
            unused columns of a CSV file; ``"refuse"`` makes an error of them, as is the rule.
        missing: name → the value that stands in for None, NaN and masked values.
        allow_nan: the features whose NaN reaches the model; True for all floats. These
            three are those of `Signature.relaxed`, for a derived signature as well.
        transform: takes the dataset of requests and returns that of what the model wants,
            one element for each request: ``.map``, ``tf.io.parse_example``, ``.prefetch``,
            options. It needs a ``signature``, that of the requests, and is tried alone, on
            a few requests, before the model answers its first.
        predict_keys: the outputs that are wanted; all by default.
        checkpoint_path: the checkpoint; the newest one in ``model_dir`` by default.
        row_wise: False for a model in which the outputs of a row depend on the other rows of
            the call; every request is then a call of its own.

    What `predict` returns is what ``estimator.predict`` yields, as whole arrays: name →
    array, the first axis the row. The tuple keys of a ``MultiHead`` are joined by "/". A
    model whose predictions are a bare tensor returns one array. TensorFlow's threads are
    as many as the worker's device says, whatever the estimator's ``session_config`` has;
    the rest of that is respected.
    """

    preload: tuple[str, ...] = ("tensorflow", "tensorflow_estimator")

    def __init__(
        self,
        build: Callable[[], Any],
        *,
        method: Method = "generator",
        signature: Any = None,
        extra: Extra | None = None,
        missing: Mapping[str, Any] | None = None,
        allow_nan: Literal[True] | Collection[str] | None = None,
        transform: Transform | None = None,
        predict_keys: Sequence[str] | None = None,
        checkpoint_path: str | None = None,
        row_wise: bool = True,
    ) -> None:
        if not callable(build):
            raise TypeError(
                f"build is {build!r}, expected a function that returns the estimator: "
                "estimators do not pickle, so it is made in the worker"
            )
        if method not in ("generator", "session"):
            raise ValueError(f"method is {method!r}, expected 'generator' or 'session'")
        _check_transform(transform, signature)
        self.method: Method = method
        self.row_wise: bool = row_wise
        self.source: ModelSource | None = None
        self._relaxed = partial(
            Signature.relaxed, extra=extra, missing=missing, allow_nan=allow_nan
        )
        self._needs_signature = any(said is not None for said in (extra, missing, allow_nan))
        self.signature: SignatureSource = (
            "infer" if signature is None else self._relaxed(Signature.declared(signature))
        )
        self._build = build
        self._transform = transform
        self._predict_keys = _names_of(predict_keys)
        self._checkpoint_path = checkpoint_path
        self._checkpoint: Checkpoint | None = None
        self._inferred = False
        self._probed = transform is None
        self._model: Model | None = None
        self._empty: Any = None

    def load(self, device: Device) -> None:
        """Build the estimator and find its checkpoint and its signature.

        Raises:
            FileNotFoundError: there is no checkpoint: the model was never trained.
            RuntimeError: this TensorFlow has no Estimators.
            ValueError: what is said of the signature does not fit the model's; or the
                estimator predicts in a way of its own, which a session would leave out.
        """
        _require_estimators()
        estimator = self._build()
        _require_estimator(estimator)
        if self.method == "session":
            require_known_predict(
                estimator, "method='session'", "Use method='generator', which calls it"
            )
        _limit_threads(estimator, device.threads)
        if self._checkpoint_path is None and "://" not in estimator.model_dir:
            self.source = ModelSource.at(estimator.model_dir, "checkpoint")
        path = _find_checkpoint(estimator, self._checkpoint_path)
        self._checkpoint = Checkpoint(estimator, path, self._predict_keys)
        if self.signature == "infer":
            self.signature = self._derived(estimator)
        self._inferred = self.signature == "infer"

    def predict(self, features: Any) -> Any:
        """Return the predictions for all rows.

        Args:
            features: a mapping of name to array, or one array, the first axis the row,
                with the dtypes and row shapes of the signature.

        Returns:
            name → array, or one array; the first axis is the same rows.
        """
        if self._checkpoint is None:
            raise RuntimeError("predict() before load()")
        signature = self._signature_for(features)
        if len(_any_array(features)) == 0:
            return self._no_rows(self._checkpoint, signature)
        if self._model is None:
            self._model = self._start(self._checkpoint, signature, features)
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

    def _derived(self, estimator: Any) -> SignatureSource:
        derived = derive_signature(estimator)
        if derived is not None:
            return self._relaxed(derived)
        if self._needs_signature:
            raise ValueError(
                "extra=, missing= and allow_nan= need a signature, and this estimator has no "
                "feature columns to read it from: declare signature="
            )
        return "infer"

    def _start(self, checkpoint: Checkpoint, signature: Signature, features: Any) -> Model:
        if self._predict_keys is not None:
            # Refuses unknown keys, which estimator.predict ignores.
            self._no_rows(checkpoint, signature)
        inputs = EstimatorInputs(signature, self._transform)
        if not self._probed:
            inputs.probe(features)
            self._probed = True
        model = GeneratorModel if self.method == "generator" else SessionModel
        return model(checkpoint, inputs)

    def _no_rows(self, checkpoint: Checkpoint, signature: Signature) -> Any:
        if self._empty is None:
            self._empty = empty_outputs(checkpoint, EstimatorInputs(signature, self._transform))
        return dict(self._empty) if isinstance(self._empty, dict) else self._empty


# --- checkpoint, signature -------------------------------------------------------


def _check_transform(transform: Any, signature: Any) -> None:
    if transform is None:
        return
    if not callable(transform):
        raise TypeError(
            f"transform is {transform!r}, expected a function that takes a tf.data.Dataset and "
            "returns one"
        )
    if signature is None:
        raise ValueError(
            "transform= needs signature=, that of the requests: what a model takes behind a "
            "transform says nothing of what the transform takes"
        )


def _names_of(predict_keys: Any) -> list[str] | None:
    if predict_keys is None:
        return None
    if isinstance(predict_keys, str) or not predict_keys:
        raise TypeError(f"predict_keys is {predict_keys!r}, expected a list of names")
    return [prediction_name(key) for key in predict_keys]


def _limit_threads(estimator: Any, threads: int) -> None:
    """Give TensorFlow as many threads as there are cores for it, and respect all else.

    More of them on a pinned worker only get into each other's way.
    """
    # `estimator.config` is a copy.
    config = estimator._session_config  # noqa: SLF001 - tensorflow-estimator ended at 2.15.0
    config.intra_op_parallelism_threads = threads
    config.inter_op_parallelism_threads = threads


def _require_estimator(estimator: Any) -> None:
    import tensorflow as tf

    if isinstance(estimator, tf.compat.v1.estimator.Estimator):
        return
    raise TypeError(
        f"build() returned {estimator!r}, expected a tf.estimator.Estimator: "
        "EstimatorPredictor takes the function that makes it"
    )


def require_known_predict(estimator: Any, what: str, remedy: str) -> None:
    """Refuse an estimator whose answers are not those of its model function alone.

    Args:
        estimator: the estimator.
        what: what would leave its own ``predict`` out.
        remedy: what to do instead.
    """
    predict = type(estimator).predict
    if predict.__module__.startswith("tensorflow_estimator."):
        return
    raise ValueError(
        f"{type(estimator).__name__} has a predict() of its own ({predict.__module__}), which "
        f"{what} would leave out: expected that of tf.estimator.Estimator. {remedy}"
    )


def _require_estimators() -> None:
    require_tensorflow(install='pip install "predictpool[estimator]" (Python 3.11)')
    import tensorflow as tf

    if not hasattr(tf, "estimator"):
        raise RuntimeError(
            f"TensorFlow {tf.__version__} has no Estimators, 2.15 was the last. Where that is (pip "
            'install "predictpool[estimator]" on Python 3.11), `predictpool export '
            "MODULE:ESTIMATOR OUT` writes the model as a SavedModel; here, "
            'SavedModelPredictor("OUT") serves it'
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
