"""The Estimators that tests predict with, and what ``estimator.predict`` says of their rows.

Run as a program it trains them all: ``python -m tests.models FOLDER``. Tests call it so, in a
process of its own, because an application never imports TensorFlow. Workers import it, too, so
nothing of pytest is in here.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictpool import _census

Array = NDArray[Any]
Features = dict[str, Array] | Array

ROWS = 150


def build_classifier(folder: Path) -> Any:
    """The demo's wide-and-deep classifier: 13 features, text and numbers."""
    _census.silence()
    return _census.build_estimator(folder / "classifier")


def build_regressor(folder: Path) -> Any:
    """A canned regressor over a vector, a number and a word."""
    _census.silence()
    import tensorflow as tf

    columns = tf.feature_column
    word = columns.categorical_column_with_vocabulary_list("word", ["a", "b", "c"])
    return tf.estimator.DNNRegressor(
        model_dir=str(folder / "regressor"),
        feature_columns=[
            columns.numeric_column("vector", shape=(4,)),
            columns.numeric_column("number", default_value=0.5),
            columns.indicator_column(word),
        ],
        hidden_units=[16, 8],
        batch_norm=True,
        dropout=0.2,
        config=tf.estimator.RunConfig(tf_random_seed=7, save_summary_steps=None),
    )


def build_custom(folder: Path) -> Any:
    """A ``model_fn`` with dropout and batch norm, and hooks that leave a note of what they see."""
    _census.silence()
    import tensorflow as tf

    journal = folder / "custom.journal"

    class Journal(tf.estimator.SessionRunHook):  # type: ignore[misc]
        def begin(self) -> None:
            note("begin")

        def end(self, session: Any) -> None:
            note("end")

    def note(event: str) -> None:
        with journal.open("a") as lines:
            lines.write(f"{event}\n")

    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        note("graph")
        layers, training = tf.compat.v1.layers, mode == tf.estimator.ModeKeys.TRAIN
        # A number given as text: what is no number passes every check and fails in the model.
        number = tf.strings.to_number(features["text"])
        hidden = layers.dense(tf.concat([features["x"], number[:, None]], 1), 16, tf.nn.relu)
        hidden = layers.batch_normalization(hidden, training=training)
        hidden = layers.dropout(hidden, 0.3, training=training)
        score = layers.dense(hidden, 1)[:, 0]
        predictions = {
            "score": score,
            "twice": tf.stack([score, 2 * score], axis=1),
            "text": features["text"],
        }
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(
                mode, predictions=predictions, prediction_hooks=[Journal()]
            )
        loss = tf.reduce_mean((score - labels) ** 2)
        step = tf.compat.v1.train.get_global_step()
        with tf.control_dependencies(
            tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.UPDATE_OPS)
        ):
            train = tf.compat.v1.train.AdamOptimizer(0.01).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    return tf.estimator.Estimator(
        model_fn,
        model_dir=str(folder / "custom"),
        config=tf.estimator.RunConfig(tf_random_seed=7, save_summary_steps=None),
    )


def build_array(folder: Path) -> Any:
    """A ``model_fn`` that takes one array and predicts one array."""
    _census.silence()
    import tensorflow as tf

    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        weight = tf.compat.v1.get_variable("weight", [3], initializer=tf.ones_initializer())
        predictions = features * weight
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions=predictions)
        loss = tf.reduce_mean((predictions - labels[:, None]) ** 2)
        step = tf.compat.v1.train.get_global_step()
        train = tf.compat.v1.train.GradientDescentOptimizer(0.01).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    return tf.estimator.Estimator(
        model_fn,
        model_dir=str(folder / "array"),
        config=tf.estimator.RunConfig(tf_random_seed=7, save_summary_steps=None),
    )


def build_doubling(folder: Path) -> Any:
    """The estimator of `build_array`, with a ``predict`` of its own, as adanet's have."""
    import tensorflow as tf

    class Doubling(tf.estimator.Estimator):  # type: ignore[misc]
        # Which TensorFlow does not want; adanet does the same to get around it.
        _assert_members_are_not_overridden = staticmethod(lambda _: None)

        def predict(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            for answer in super().predict(*arguments, **options):
                yield 2 * answer

    array = build_array(folder)
    return Doubling(array._model_fn, model_dir=array.model_dir, config=array.config)


def build_branching(folder: Path) -> Any:
    """A ``model_fn`` over feature columns, as canned ones are, with Python for AutoGraph in it."""
    _census.silence()
    import tensorflow as tf

    feature_columns = [tf.feature_column.numeric_column("number")]

    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        class Clip(tf.keras.layers.Layer):  # type: ignore[misc]
            def call(self, values: Any) -> Any:
                if tf.reduce_any(values > 1.0):
                    values = tf.minimum(values, 1.0)
                return values

        numbers = tf.compat.v1.feature_column.input_layer(features, feature_columns)
        score = tf.compat.v1.layers.dense(Clip()(numbers), 1)
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions={"score": score})
        loss = tf.reduce_mean((score - labels[:, None]) ** 2)
        step = tf.compat.v1.train.get_global_step()
        train = tf.compat.v1.train.GradientDescentOptimizer(0.01).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    return tf.estimator.Estimator(
        model_fn,
        model_dir=str(folder / "branching"),
        config=tf.estimator.RunConfig(tf_random_seed=7, save_summary_steps=None),
    )


def classifier_rows() -> tuple[Features, Array]:
    features, labels = _census.read_rows("held-out")
    return {name: values[:ROWS] for name, values in features.items()}, labels[:ROWS]


def regressor_rows() -> tuple[Features, Array]:
    random = np.random.default_rng(1)
    features: Features = {
        "vector": random.normal(size=(ROWS, 4)).astype(np.float32),
        "number": random.normal(size=ROWS).astype(np.float32),
        "word": np.array(list("abc?"), object)[random.integers(0, 4, ROWS)],
    }
    return features, random.normal(size=ROWS).astype(np.float32)


def custom_rows() -> tuple[Features, Array]:
    random = np.random.default_rng(2)
    features: Features = {
        "x": random.normal(size=(ROWS, 5)).astype(np.float32),
        "text": np.array([f"{number:.3f}".encode() for number in random.normal(size=ROWS)], object),
    }
    return features, random.normal(size=ROWS).astype(np.float32)


def array_rows() -> tuple[Features, Array]:
    random = np.random.default_rng(3)
    values = random.normal(size=(ROWS, 3)).astype(np.float32)
    return values, values[:, 0]


def branching_rows() -> tuple[Features, Array]:
    random = np.random.default_rng(4)
    numbers = 2 * random.normal(size=ROWS).astype(np.float32)
    return {"number": numbers}, numbers


CUSTOM_SIGNATURE = {"x": (np.float32, (5,)), "text": (bytes, ())}

Build = Callable[[Path], Any]
MODELS: dict[str, tuple[Build, Callable[[], tuple[Features, Array]], Any]] = {
    "classifier": (build_classifier, classifier_rows, None),
    "regressor": (build_regressor, regressor_rows, None),
    "custom": (build_custom, custom_rows, CUSTOM_SIGNATURE),
    "array": (build_array, array_rows, (np.float32, (3,))),
    "branching": (build_branching, branching_rows, None),
}


class ReyieldingPredictor:
    """The generator trick as it was published: the generator yields again, and never waits.

    It answers with the previous caller's prediction on TensorFlow 2.11 to 2.15. Tests of stale
    answers have to fail with it, or they would prove nothing.
    """

    preload = ("tensorflow", "tensorflow_estimator")
    row_wise = False
    signature = None

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._features: Any = None
        self._answers: Any = None

    def load(self, device: object) -> None:
        self._estimator = self._build()

    def _dataset(self) -> Any:
        import tensorflow as tf

        def forever() -> Iterator[Any]:
            while True:
                yield self._features

        specs = {
            name: tf.TensorSpec([None, *values.shape[1:]], tf.as_dtype(values.dtype))
            for name, values in self._features.items()
        }
        return tf.data.Dataset.from_generator(forever, output_signature=specs)

    def predict(self, features: Any) -> Any:
        self._features = {
            name: np.array([text.encode() for text in values], object)
            if values.dtype.kind == "O"
            else values
            for name, values in features.items()
        }
        if self._answers is None:
            self._answers = self._estimator.predict(self._dataset, yield_single_examples=False)
        return next(self._answers)

    def close(self) -> None:
        """Leave the generator to the end of the process: it cannot be ended in good order."""


def train(folder: Path) -> None:
    """Train each model for a few steps, and write down what it predicts."""
    import tensorflow as tf

    for name, (build, rows, _) in MODELS.items():
        estimator = build(folder)
        features, labels = rows()

        def rows_and_labels(features: Any = features, labels: Any = labels) -> Any:
            return tf.data.Dataset.from_tensor_slices((features, labels)).repeat().batch(32)

        if name == "classifier":
            _census.train(folder / name, steps=60)
        else:
            estimator.train(rows_and_labels, steps=60)
        answers = estimator.predict(
            lambda features=features: tf.data.Dataset.from_tensor_slices(features).batch(ROWS),
            yield_single_examples=False,
        )
        (expected,) = answers
        (folder / f"{name}.expected").write_bytes(pickle.dumps(expected))
    (folder / "custom.journal").unlink()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
