"""Transforms of tf.data between the requests and an Estimator, right ones and wrong ones.

``python -m tests.pipelines FOLDER`` trains the Estimator and writes down, for each of the right
ones, requests and what ``estimator.predict`` says of them. See `tests.models` for why.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from predictpool import _census

ROWS = 96
WIDTH = 3


def build(folder: Path) -> Any:
    """Return an Estimator that tells its input back, in two ways."""
    _census.silence()
    import tensorflow as tf

    def model_fn(features: Any, labels: Any, mode: str) -> Any:
        weight = tf.compat.v1.get_variable("weight", [WIDTH], initializer=tf.ones_initializer())
        weighted = features["x"] * weight
        predictions = {"weighted": weighted, "sum": tf.reduce_sum(weighted, 1)}
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions=predictions)
        loss = tf.reduce_mean((predictions["sum"] - labels) ** 2)
        step = tf.compat.v1.train.get_global_step()
        train = tf.compat.v1.train.GradientDescentOptimizer(0.01).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    return tf.estimator.Estimator(model_fn, model_dir=str(folder / "echo"))


# --- transforms: TensorFlow is imported where they run, in workers -----------------


def halved(dataset: Any) -> Any:
    return dataset.map(lambda features: {"x": features["x"] / 2})


def two_maps(dataset: Any) -> Any:
    return halved(dataset).map(lambda features: {"x": features["x"] + 1})


def parallel_map(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.map(
        lambda features: {"x": features["x"] - 1}, num_parallel_calls=tf.data.AUTOTUNE
    )


def prefetch_one(dataset: Any) -> Any:
    return dataset.prefetch(1)


def prefetch_many(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.prefetch(tf.data.AUTOTUNE)


def map_and_prefetch(dataset: Any) -> Any:
    return prefetch_many(halved(dataset))


def labelled(dataset: Any) -> Any:
    """Return features and labels, as an input function that is shared with training does."""
    return dataset.map(lambda features: (features, features["x"][:, 0]))


def cautious_options(dataset: Any) -> Any:
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return halved(dataset).with_options(options)


def eager_options(dataset: Any) -> Any:
    """Return a dataset that pulls ahead wherever tf.data can."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = True
    options.experimental_optimization.inject_prefetch = True
    options.experimental_optimization.map_parallelization = True
    options.experimental_optimization.map_and_batch_fusion = True
    options.threading.private_threadpool_size = 3
    return prefetch_many(parallel_map(dataset)).with_options(options)


def one_thread(dataset: Any) -> Any:
    """Return a dataset whose only thread the generator would hold."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    return two_maps(dataset).with_options(options)


def parse_examples(dataset: Any) -> Any:
    import tensorflow as tf

    spec = {"x": tf.io.FixedLenFeature([WIDTH], tf.float32)}
    return dataset.map(lambda serialized: tf.io.parse_example(serialized, spec))


def decode_images(dataset: Any) -> Any:
    import tensorflow as tf

    def brightness(encoded: Any) -> Any:
        return tf.reduce_mean(tf.cast(tf.io.decode_png(encoded, WIDTH), tf.float32), [0, 1])

    return dataset.map(
        lambda images: {"x": tf.map_fn(brightness, images["png"], fn_output_signature=tf.float32)}
    )


NUMBERS = {"x": (np.float32, (WIDTH,))}
RIGHT: dict[str, tuple[Callable[[Any], Any] | None, Any]] = {
    "plain": (None, NUMBERS),
    "map": (halved, NUMBERS),
    "two maps": (two_maps, NUMBERS),
    "parallel map": (parallel_map, NUMBERS),
    "prefetch(1)": (prefetch_one, NUMBERS),
    "prefetch(AUTOTUNE)": (prefetch_many, NUMBERS),
    "map and prefetch": (map_and_prefetch, NUMBERS),
    "labels": (labelled, NUMBERS),
    "cautious options": (cautious_options, NUMBERS),
    "eager options": (eager_options, NUMBERS),
    "one thread": (one_thread, NUMBERS),
    "parse_example": (parse_examples, bytes),
    "images": (decode_images, {"png": bytes}),
}


def batch(dataset: Any) -> Any:
    return dataset.batch(32)


def batch_of_one(dataset: Any) -> Any:
    return dataset.batch(1)


def rebatch(dataset: Any) -> Any:
    return dataset.unbatch().batch(32)


def unbatch(dataset: Any) -> Any:
    return dataset.unbatch()


def shuffle(dataset: Any) -> Any:
    return dataset.shuffle(100, seed=1)


def filter_out(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.filter(lambda features: tf.shape(features["x"])[0] > 3)


def repeat(dataset: Any) -> Any:
    return dataset.repeat()


def repeat_each(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.flat_map(lambda features: tf.data.Dataset.from_tensors(features).repeat(2))


def take(dataset: Any) -> Any:
    return dataset.take(3)


def skip(dataset: Any) -> Any:
    return dataset.skip(1)


def row_lost(dataset: Any) -> Any:
    return dataset.map(lambda features: {"x": features["x"][1:]})


def nothing(dataset: Any) -> None:
    del dataset


def raising(dataset: Any) -> Any:
    import tensorflow as tf

    return dataset.map(
        lambda features: {"x": tf.debugging.check_numerics(features["x"] / 0, "not finite")}
    )


_COUNTS = "8 requests of 3, 7, 1, 5, 2, 8, 4, 6 rows came "
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "batch": (batch, "transform failed on requests of 3, 7, 1, 5, 2, 8, 4, 6 rows: "),
    "batch of one": (batch_of_one, _COUNTS + "8 elements of 1, 1, 1, 1, 1, 1, 1, 1 rows"),
    "rebatch": (rebatch, _COUNTS + "2 elements of 32, 4 rows"),
    "unbatch": (unbatch, _COUNTS + "more than 8 elements, of 3, 3, 3"),
    "shuffle": (shuffle, _COUNTS + "8 elements of "),
    "filter": (filter_out, _COUNTS + "5 elements of 7, 5, 8, 4, 6 rows"),
    "repeat": (repeat, _COUNTS + "more than 8 elements, of 3, 7, 1, 5, 2, 8, 4, 6, 3 rows"),
    "repeat each": (repeat_each, _COUNTS + "more than 8 elements, of 3, 3, 7, 7"),
    "take": (take, _COUNTS + "3 elements of 3, 7, 1 rows"),
    "skip": (skip, _COUNTS + "7 elements of 7, 1, 5, 2, 8, 4, 6 rows"),
    "row lost": (row_lost, _COUNTS + "8 elements of 2, 6, 0, 4, 1, 7, 3, 5 rows"),
    "nothing": (nothing, "transform returned None, expected a tf.data.Dataset"),
    "raising": (raising, "transform failed on requests of 3, 7, 1, 5, 2, 8, 4, 6 rows: "),
}


# --- what is to be expected --------------------------------------------------------


def requests(name: str) -> Any:
    """Return as many rows as there are, every one of them different."""
    import tensorflow as tf

    random = np.random.default_rng(5)
    numbers = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    if name == "parse_example":
        return np.array([_serialized(row) for row in numbers], object)
    if name == "images":
        images = random.integers(0, 256, (ROWS, 4, 5, WIDTH), np.uint8)
        return {"png": np.array([tf.io.encode_png(image).numpy() for image in images], object)}
    return {"x": numbers}


def _serialized(row: Any) -> bytes:
    import tensorflow as tf

    floats = tf.train.Feature(float_list=tf.train.FloatList(value=row))
    example = tf.train.Example(features=tf.train.Features(feature={"x": floats}))
    return bytes(example.SerializeToString())


def train(folder: Path) -> None:
    """Train the Estimator, and write down requests and what it says of them."""
    import tensorflow as tf

    estimator = build(folder)
    rows = requests("plain")

    def rows_and_labels() -> Any:
        return tf.data.Dataset.from_tensors((rows, rows["x"][:, 0])).repeat()

    estimator.train(rows_and_labels, steps=20)
    known = {}
    for name, (transform, _) in RIGHT.items():
        features = requests(name)

        def all_rows(features: Any = features, transform: Any = transform) -> Any:
            dataset = tf.data.Dataset.from_tensors(features)
            return dataset if transform is None else transform(dataset)

        (expected,) = estimator.predict(all_rows, yield_single_examples=False)
        known[name] = (features, expected)
    (folder / "known").write_bytes(pickle.dumps(known))


if __name__ == "__main__":
    train(Path(sys.argv[1]))
