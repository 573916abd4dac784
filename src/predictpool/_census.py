"""The demo's data and model: census rows, and a classifier of who earns more than $50,000.

The rows are an extract of the UCI "Adult" data set; ``data/README.md`` says whose they are and how
they were chosen. Workers import this module, so it must not import the pool, and TensorFlow only
inside functions.
"""

import csv
import gzip
import importlib.resources
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

NUMERIC = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
TEXT = (
    "workclass",
    "education",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native_country",
)
INCOMES = ("<=50K", ">50K")
TRAINING_ROWS = 8_000
HELD_OUT_ROWS = 2_000
TRAINING_STEPS = 1_000

Features = dict[str, NDArray[Any]]


def read_rows(split: Literal["training", "held-out"]) -> tuple[Features, NDArray[np.int64]]:
    """Read the rows of one split of the extract, in the order in which they were published.

    Returns:
        the 13 features, arrays of shape ``(rows,)``: those in `NUMERIC` float32, those in `TEXT`
        objects of type str; and the labels, int64 of shape ``(rows,)``, which index `INCOMES`.
    """
    packed = importlib.resources.files("predictpool") / "data" / "census.csv.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    rows = [row for row in csv.DictReader(lines) if row["split"] == split]
    features: Features = {
        name: np.array([row[name] for row in rows], np.float32) for name in NUMERIC
    }
    features |= {name: np.array([row[name] for row in rows], object) for name in TEXT}
    return features, np.array([INCOMES.index(row["income"]) for row in rows], np.int64)


def build_estimator(model_dir: str | Path) -> Any:
    """Return the wide-and-deep ``tf.estimator.DNNLinearCombinedClassifier`` of ``model_dir``.

    Building it neither reads nor writes the directory; `train` fills it.
    """
    import tensorflow as tf

    wide, deep = _feature_columns()
    return tf.estimator.DNNLinearCombinedClassifier(
        model_dir=os.fspath(model_dir),
        linear_feature_columns=wide,
        dnn_feature_columns=deep,
        dnn_hidden_units=[64, 32],
        dnn_optimizer="Adam",
        config=tf.estimator.RunConfig(
            tf_random_seed=1994, save_summary_steps=None, log_step_count_steps=None
        ),
    )


def build_estimator_quietly(model_dir: str | Path) -> Any:
    """Do as `build_estimator` in a process, a worker, that belongs to the demo: see `silence`."""
    silence()
    return build_estimator(model_dir)


def silence() -> None:
    """Keep TensorFlow's chatter off the demo's terminal; exceptions say what goes wrong.

    Estimators are deprecated, and TensorFlow says so some 20 times for each one that is built; its
    C++ half logs as errors, on every machine, that cuDNN is registered twice. Only the demo calls
    this: what an application logs is not our business. It must come before the import of
    TensorFlow; child processes inherit the C++ half's level, which gives way to a
    ``TF_CPP_MIN_LOG_LEVEL`` that the user has set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def train(
    model_dir: str | Path,
    steps: int = TRAINING_STEPS,
    on_progress: Callable[[int], None] = lambda _step: None,
) -> Any:
    """Train the estimator in ``model_dir`` up to ``steps`` steps of 128 rows and return it.

    A model that was trained that far before is taken as it is. ``on_progress`` is called after each
    step with the number of steps made so far.
    """
    import tensorflow as tf

    class Progress(tf.estimator.SessionRunHook):  # type: ignore[misc]
        def before_run(self, run_context: Any) -> Any:
            step = tf.compat.v1.train.get_global_step()
            return tf.estimator.SessionRunArgs(step)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            on_progress(int(run_values.results))

    features, labels = read_rows("training")

    def batches() -> Any:
        rows = tf.data.Dataset.from_tensor_slices((features, labels))
        return rows.shuffle(TRAINING_ROWS, seed=1994).repeat().batch(128)

    estimator = build_estimator(model_dir)
    estimator.train(batches, hooks=[Progress()], max_steps=steps)
    return estimator


def _feature_columns() -> tuple[list[Any], list[Any]]:
    """Return the columns of the wide (linear) half and of the deep half of the model."""
    from tensorflow import feature_column, math

    training, _ = read_rows("training")
    words = {
        name: feature_column.categorical_column_with_vocabulary_list(
            name, sorted(set(training[name]) - {"?"})
        )
        for name in TEXT
        if name != "native_country"
    }
    words["native_country"] = feature_column.categorical_column_with_hash_bucket(
        "native_country", 100
    )
    # Most people have no capital gain, a few $99,999: the logarithm brings all to one scale.
    numbers = [feature_column.numeric_column(name, normalizer_fn=math.log1p) for name in NUMERIC]
    age = feature_column.bucketized_column(
        feature_column.numeric_column("age"), [18, 25, 30, 35, 40, 45, 50, 55, 60, 65]
    )
    crossed = [
        feature_column.crossed_column(["education", "occupation"], 1_000),
        feature_column.crossed_column([age, "education", "occupation"], 5_000),
    ]
    embedded = ("education", "occupation", "native_country")
    deep = [
        feature_column.embedding_column(column, 8)
        if name in embedded
        else feature_column.indicator_column(column)
        for name, column in words.items()
    ]
    return [age, *words.values(), *crossed], [*numbers, *deep]
