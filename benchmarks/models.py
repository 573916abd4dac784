"""The models that are measured, and the rows that they are asked for.

Workers import this module, so TensorFlow is imported only inside functions.
"""

import functools
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from predictpool import Device, EstimatorPredictor, Predictor, _census
from predictpool._features._signature import SignatureSource
from predictpool.predictors._estimator import Method

Name = Literal["census", "small"]
Arrays = dict[str, NDArray[Any]]

NAMES: tuple[Name, ...] = ("census", "small")
CLOCK = "clock"
METHODS: tuple[Method, ...] = ("generator", "session")

_SMALL_NUMERIC = ("age", "education_num", "hours_per_week")
_SMALL_TEXT = ("occupation", "native_country")


@dataclass(frozen=True)
class Model:
    """A wide-and-deep Estimator over Census rows.

    Attributes:
        name: ``"census"`` has all 13 features, ``"small"`` three numbers and two hashed texts.
        directory: its ``model_dir``.
    """

    name: Name
    directory: str

    def build(self) -> Any:
        """Return the Estimator, in a process that belongs to the benchmarks."""
        _census.silence()
        if self.name == "census":
            return _census.build_estimator(self.directory)
        return _build_small(self.directory)

    def predictor(self, method: Method, *, clocked: bool = False) -> Predictor[Arrays]:
        """Return what workers load."""
        predictor = EstimatorPredictor(self.build, method=method)
        return Clocked(predictor) if clocked else predictor

    def rows(self, count: int) -> list[Arrays]:
        """Return that many held-out rows: arrays of shape ``(1,)``, float32 or objects of str."""
        columns = self._columns("held-out")
        return [
            {name: values[row : row + 1] for name, values in columns.items()}
            for row in range(count)
        ]

    def requests(self, count: int, rows: int) -> list[Arrays]:
        """Return that many requests of so many rows each, no row twice.

        They are what an application holds that has just read them: arrays of their own, of shape
        ``(rows,)``, float32 or objects of str.

        Raises:
            ValueError: there are not so many rows.
        """
        columns = self._columns("training")
        if count * rows > _census.TRAINING_ROWS:
            raise ValueError(f"{count} × {rows} rows, and there are {_census.TRAINING_ROWS}")
        return [
            {name: values[first : first + rows].copy() for name, values in columns.items()}
            for first in range(0, count * rows, rows)
        ]

    def train(self, steps: int) -> None:
        """Train it that far, unless it has been; in a process that ends afterwards."""
        _census.silence()
        if self.name == "census":
            _census.train(self.directory, steps)
        else:
            features, labels = self._columns("training"), _census.read_rows("training")[1]
            self.build().train(functools.partial(_batches, features, labels), max_steps=steps)

    def _columns(self, split: Literal["training", "held-out"]) -> Arrays:
        columns, _ = _census.read_rows(split)
        if self.name == "census":
            return columns
        return {name: columns[name] for name in (*_SMALL_NUMERIC, *_SMALL_TEXT)}


class Clocked:
    """Notes when the model begins and ends, in an output `CLOCK` of its own.

    The clock is one for all processes of a machine: ``time.monotonic_ns``, on Linux.
    """

    row_wise = True

    def __init__(self, predictor: EstimatorPredictor) -> None:
        self.preload = predictor.preload
        self._predictor = predictor

    @property
    def signature(self) -> SignatureSource:
        """What the model takes."""
        return self._predictor.signature

    def load(self, device: Device) -> None:
        """Load the model."""
        self._predictor.load(device)

    def predict(self, features: Any) -> Arrays:
        """Return the model's outputs, and the clock before and after: int64 ``(rows, 2)``."""
        began = time.monotonic_ns()
        outputs = self._predictor.predict(features)
        ended = time.monotonic_ns()
        rows = len(next(iter(outputs.values())))
        return {**outputs, CLOCK: np.array([[began, ended]] * rows)}

    def close(self) -> None:
        """End the model."""
        self._predictor.close()


def predict_naively(estimator: Any, features: Arrays) -> Arrays:
    """Ask ``estimator.predict``, which builds its graph and restores its checkpoint each time."""
    import tensorflow as tf

    (answer,) = estimator.predict(
        lambda: tf.data.Dataset.from_tensors(features), yield_single_examples=False
    )
    return dict(answer)


def together(rows: list[Arrays]) -> Arrays:
    """Return rows as one request."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _batches(features: Arrays, labels: NDArray[Any]) -> Any:
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((features, labels))
    return rows.shuffle(len(labels), seed=1994).repeat().batch(128)


def _build_small(directory: str) -> Any:
    import tensorflow as tf

    numbers = [tf.feature_column.numeric_column(name) for name in _SMALL_NUMERIC]
    words = [
        tf.feature_column.categorical_column_with_hash_bucket(name, 100) for name in _SMALL_TEXT
    ]
    return tf.estimator.DNNLinearCombinedClassifier(
        model_dir=os.fspath(directory),
        linear_feature_columns=words,
        dnn_feature_columns=[
            *numbers,
            *(tf.feature_column.embedding_column(column, 8) for column in words),
        ],
        dnn_hidden_units=[64, 32],
        dnn_optimizer="Adam",
        config=tf.estimator.RunConfig(
            tf_random_seed=1994, save_summary_steps=None, log_step_count_steps=None
        ),
    )
