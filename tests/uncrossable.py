"""Estimators that no SavedModel can stand for, and transforms.

Workers import them, so nothing of pytest is in here.
"""

from __future__ import annotations

from typing import Any

from tests.canned import trained_here, weighted


def predict_random(features: Any) -> Any:
    """Another answer for every call."""
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    return score, {"score": score + tf.random.uniform([1])}


def predict_python(features: Any) -> Any:
    """Half of the work is done in Python."""
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    half = tf.numpy_function(lambda values: values / 2, [score], tf.float32, name="half")
    return score, {"score": tf.ensure_shape(half, [None])}


def predict_fed_by_a_hook(features: Any) -> Any:
    """What is added comes from a hook."""
    import tensorflow as tf

    score = weighted(features["x"], "weight")
    more = tf.compat.v1.placeholder_with_default(0.0, [], name="more")

    class More(tf.estimator.SessionRunHook):  # type: ignore[misc]
        def before_run(self, run_context: Any) -> Any:
            return tf.estimator.SessionRunArgs(fetches=[], feed_dict={more: 1.0})

    return score, {"score": score + more}, {"prediction_hooks": [More()]}


def halved(dataset: Any) -> Any:
    """A transform that crosses."""
    return dataset.map(lambda values: values / 2)


def halved_by_python(dataset: Any) -> Any:
    """One that does not."""
    import tensorflow as tf

    def half(values: Any) -> Any:
        halves = tf.numpy_function(lambda array: array / 2, [values], tf.float32, name="half")
        return tf.ensure_shape(halves, values.shape)

    return dataset.map(half)


build_random = trained_here("random", predict_random)
build_python = trained_here("python", predict_python)
build_fed_by_a_hook = trained_here("fed_by_a_hook", predict_fed_by_a_hook)
