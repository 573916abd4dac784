"""The two ways to keep an Estimator's model loaded, with one contract: `Model`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from predictpool.predictors._canned import is_canned
from predictpool.predictors._estimator_inputs import EstimatorInputs
from predictpool.predictors._tensorflow import empty_like


class Model(Protocol):
    """A loaded model.

    Attributes:
        usable: whether it can answer another request.
    """

    usable: bool

    def run(self, features: Any) -> Any:
        """Return the predictions for these features, as `Checkpoint` orders them."""

    def close(self) -> None:
        """Let go of the model."""


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of.

    Attributes:
        estimator: the ``tf.estimator.Estimator``.
        path: of the checkpoint.
        predict_keys: the predictions that are wanted, as users name them, or None for all.
    """

    estimator: Any
    path: str
    predict_keys: list[str] | None


# --- method="generator" ------------------------------------------------------------

_END = object()


class GeneratorModel:
    """One never-ending ``estimator.predict``; dead after the first error in it."""

    def __init__(self, checkpoint: Checkpoint, inputs: EstimatorInputs) -> None:
        self.usable = True
        self._begun = False
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._estimator = checkpoint.estimator
        self._inputs = inputs
        self._names: dict[Any, str] = {}
        wanted = checkpoint.predict_keys
        self._answers = self._estimator.predict(
            self._input,
            hooks=[_release_hook(self._requests)],
            predict_keys=None if wanted is None else _Wanted(wanted),
            checkpoint_path=checkpoint.path,
            yield_single_examples=False,
        )

    def run(self, features: Any) -> Any:
        self._requests.put(self._inputs.fed(features))
        try:
            answer = next(self._answers) if self._begun else self._begin()
        except StopIteration:
            self.usable = False
            raise RuntimeError("estimator.predict ended by itself") from None
        except Exception:
            self.usable = False
            raise
        return _renamed(answer, self._names) if self._names else answer

    def _begin(self) -> Any:
        """Get the first answer, for which graph and session are made."""
        self._begun = True
        answer = without_autograph(self._estimator, lambda: next(self._answers))
        self._names = _new_names(answer)
        return answer

    def close(self) -> None:
        # The sentinel lets TensorFlow's own thread out of the blocking generator, and
        # exhausting the iterator, unlike closing it, calls the hooks' end().
        self._requests.put(_END)
        for _ in self._answers:
            raise RuntimeError("estimator.predict answered a request that was never made")

    def _input(self, params: Any = None) -> Any:
        # A TPUEstimator insists on a parameter of that name.
        return self._inputs.dataset(self._pending)

    def _pending(self) -> Iterator[Any]:
        """Yield requests, blocking until there is one: nothing can be pulled ahead."""
        while (fed := self._requests.get()) is not _END:
            yield fed


class _Wanted(list[str]):
    """Keys that ``estimator.predict`` compares with its own, which may be tuples."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(prediction_name(key))


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


class SessionModel:
    """The model's graph and checkpoint, held in a session."""

    def __init__(self, checkpoint: Checkpoint, inputs: EstimatorInputs) -> None:
        import tensorflow as tf

        estimator = checkpoint.estimator
        self.usable = True
        self._inputs = inputs
        with tf.Graph().as_default():
            fetches, placeholders, spec = without_autograph(
                estimator, lambda: build_graph(checkpoint, inputs)
            )
            creator = tf.compat.v1.train.ChiefSessionCreator(
                scaffold=spec.scaffold,
                checkpoint_filename_with_path=checkpoint.path,
                config=estimator.config.session_config,
            )
            self._session = tf.compat.v1.train.MonitoredSession(
                session_creator=creator, hooks=spec.prediction_hooks
            )
        raw = self._session.run_step_fn(lambda step_context: step_context.session)
        self._call = raw.make_callable(fetches, feed_list=placeholders)

    def run(self, features: Any) -> Any:
        return self._call(*self._inputs.flat(self._inputs.fed(features)))

    def close(self) -> None:
        self._session.close()


def empty_outputs(checkpoint: Checkpoint, inputs: EstimatorInputs) -> Any:
    """Return the predictions for no rows, their dtypes and shapes read off the graph.

    Raises:
        ValueError: there is no prediction of a name in ``predict_keys``.
    """
    import tensorflow as tf

    with tf.Graph().as_default():
        predictions, _, _ = without_autograph(
            checkpoint.estimator, lambda: build_graph(checkpoint, inputs)
        )
        if isinstance(predictions, dict):
            return {name: empty_like(tensor) for name, tensor in predictions.items()}
        return empty_like(predictions)


# --- the graph ---------------------------------------------------------------------


def build_graph(checkpoint: Checkpoint, inputs: EstimatorInputs) -> tuple[Any, list[Any], Any]:
    """Build the prediction graph over placeholders, in the current default graph.

    Returns:
        the predictions that are wanted, the placeholders, and the EstimatorSpec.
    """
    import tensorflow as tf

    estimator = checkpoint.estimator
    tf.compat.v1.set_random_seed(estimator.config.tf_random_seed)
    tf.compat.v1.train.create_global_step()
    placeholders, features = inputs.placeholders()
    spec = estimator.model_fn(features, None, tf.estimator.ModeKeys.PREDICT, estimator.config)
    return _chosen(spec.predictions, checkpoint.predict_keys), placeholders, spec


def without_autograph(estimator: Any, build: Callable[[], Any]) -> Any:
    """Build without AutoGraph what does not need it: the graphs of canned estimators.

    It takes a quarter of their start (and 14 MB) to find nothing to convert. A function of
    the user's may have something.
    """
    import tensorflow as tf

    if is_canned(estimator):
        build = tf.autograph.experimental.do_not_convert(build)
    return build()


def _chosen(predictions: Any, wanted: list[str] | None) -> Any:
    if not isinstance(predictions, dict):
        if wanted is None:
            return predictions
        raise ValueError(
            f"predict_keys={wanted}, but the predictions of this model are one array "
            "without keys: leave predict_keys out"
        )
    named = _renamed(predictions, _new_names(predictions))
    if wanted is None:
        return named
    unknown = [key for key in wanted if key not in named]
    if unknown:
        raise ValueError(f"predict_keys names {unknown}; this model has {sorted(named)}")
    return {key: value for key, value in named.items() if key in wanted}


def _new_names(predictions: Any) -> dict[Any, str]:
    """Return a name for every key, where one of them is no text; a MultiHead's are tuples.

    Raises:
        ValueError: two keys would get the same name.
    """
    if not isinstance(predictions, dict) or all(isinstance(key, str) for key in predictions):
        return {}
    names = {key: prediction_name(key) for key in predictions}
    if len(set(names.values())) < len(names):
        raise ValueError(f"two of the predictions' keys have the same name: {list(names)}")
    return names


def prediction_name(key: object) -> str:
    """Return the name of a prediction whose key may be a tuple: joined by "/".

    So they are called in the signatures that such a model is exported with.
    """
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _renamed(predictions: Any, names: dict[Any, str]) -> Any:
    if not names:
        return predictions
    return {names[key]: value for key, value in predictions.items()}
