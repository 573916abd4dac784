"""Ways to predict with a loaded Keras model, in process: ``python -m benchmarks.keras``.

On one core and with one TensorFlow thread, as in a worker. Prints the table that
docs/reference/models.md has, in milliseconds. Runs on Keras 2 and Keras 3.
"""

import argparse
import functools
import os
import platform
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.figures import Spread
from predictpool import Device, KerasPredictor

ROWS = (1, 32, 256)
ROUNDS = 9
SECONDS = 0.15  # of each way, in each round

Rows = Callable[[int], Any]


def main() -> None:
    """Measure every way with every model, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keras", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a single round, for a try")
    quick = parser.parse_args().quick
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    # Before anything else: the number of TensorFlow's threads cannot be changed later.
    with TemporaryDirectory() as folder:
        tables = [
            measure(name, Path(folder), 1 if quick else ROUNDS) for name in ("mixed", "dense")
        ]
    import tensorflow as tf

    print(f"TensorFlow {tf.__version__}, CPython {platform.python_version()}, one core\n")
    print("| model | way |" + "".join(f" {rows} |" for rows in ROWS))
    print("|---|---|" + "--:|" * len(ROWS))
    for table in tables:
        print("\n".join(table))


def measure(name: str, folder: Path, rounds: int) -> list[str]:
    """Time each way in turn; the machine's moods then meet all of them."""
    make_rows, calls = ways(name, folder)
    taken: dict[tuple[str, int], list[float]] = {(way, rows): [] for way in calls for rows in ROWS}
    for _ in range(rounds):
        for (way, rows), seconds in taken.items():
            seconds.append(seconds_of(functools.partial(calls[way], make_rows(rows))))
    lines = []
    for way in calls:
        spreads = [Spread.of(taken[way, rows]) for rows in ROWS]
        figures = "".join(
            f" {1e3 * one.median:.2f} ({1e3 * one.low:.2f}–{1e3 * one.high:.2f}) |"
            for one in spreads
        )
        lines.append(f"| {name} | {way} |{figures}")
    return lines


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long one call takes, of as many as fit."""
    call()
    once = timeit.timeit(call, number=1)
    number = max(1, int(SECONDS / once))
    return timeit.timeit(call, number=number) / number


def ways(name: str, folder: Path) -> tuple[Rows, dict[str, Callable[[Any], Any]]]:
    """Return what makes rows, and by name what takes arrays and returns arrays."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model, rows = (mixed if name == "mixed" else dense)(tf.keras)
    model.save(folder / f"{name}.keras")
    predictor = KerasPredictor(folder / f"{name}.keras")
    predictor.load(Device())
    function = tf.function(functools.partial(model, training=False), reduce_retracing=True)

    def tensors(arrays: Any) -> Any:
        # Keras 3 takes no arrays of text.
        return tf.nest.map_structure(tf.constant, arrays)

    found: dict[str, Callable[[Any], Any]] = {
        "KerasPredictor": predictor.predict,
        "`tf.function`": lambda given: arrays_of(function(tensors(given))),
        "`model(x)`": lambda given: arrays_of(model(tensors(given), training=False)),
        "`model.predict_on_batch`": lambda given: model.predict_on_batch(tensors(given)),
        "`model.predict`": lambda given: model.predict(tensors(given), verbose=0),
    }
    if name == "dense":
        found["frozen, in a session"] = frozen(function, tensors(rows(1)))
    return rows, found


def arrays_of(outputs: Any) -> Any:
    """Return outputs as numpy arrays."""
    if isinstance(outputs, Mapping):
        return {name: tensor.numpy() for name, tensor in outputs.items()}
    return outputs.numpy()


def frozen(function: Any, example: Any) -> Callable[[Any], Any]:
    """Return what calls the function's graph, its variables made constants, in a session."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    spec = tf.TensorSpec([None, *example.shape[1:]], example.dtype)
    concrete = function.get_concrete_function(spec)
    constant = convert_to_constants.convert_variables_to_constants_v2(concrete)
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(constant.graph.as_graph_def(), name="")
    one_thread = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1
    )
    session = tf.compat.v1.Session(graph=graph, config=one_thread)
    call: Callable[[Any], Any] = session.make_callable(
        constant.outputs[0].name, feed_list=[constant.inputs[0].name]
    )
    return call


# --- models ------------------------------------------------------------------------


def dense(keras: Any) -> tuple[Any, Rows]:
    """Twenty numbers, three layers."""
    layers = keras.layers
    inputs = hidden = keras.Input((20,))
    for _ in range(3):
        hidden = layers.Dense(64, activation="relu")(hidden)
    return keras.Model(inputs, layers.Dense(1)(hidden)), lambda rows: np.ones(
        (rows, 20), np.float32
    )


def mixed(keras: Any) -> tuple[Any, Rows]:
    """Five named inputs: numbers, a vector, an integer and a text; two outputs."""
    layers = keras.layers
    inputs = {
        "age": keras.Input((1,), name="age"),
        "hours": keras.Input((1,), name="hours"),
        "vector": keras.Input((8,), name="vector"),
        "code": keras.Input((1,), name="code", dtype="int64"),
        "word": keras.Input((1,), name="word", dtype="string"),
    }
    word = layers.StringLookup(vocabulary=["a", "b", "c"])(inputs["word"])
    hidden = layers.Concatenate()(
        [
            layers.Normalization(mean=[40.0], variance=[100.0])(inputs["age"]),
            inputs["hours"],
            inputs["vector"],
            layers.Flatten()(layers.Embedding(50, 4)(inputs["code"])),
            layers.Flatten()(layers.Embedding(5, 4)(word)),
        ]
    )
    hidden = layers.BatchNormalization()(layers.Dense(64, activation="relu")(hidden))
    hidden = layers.Dense(32, activation="relu")(layers.Dropout(0.3)(hidden))
    outputs = {"score": layers.Dense(1)(hidden), "hidden": hidden}
    return keras.Model(inputs, outputs), mixed_rows


def mixed_rows(rows: int) -> Any:
    """Return rows for the mixed model."""
    numbers = np.ones((rows, 1), np.float32)
    return {
        "age": numbers,
        "hours": numbers,
        "vector": np.ones((rows, 8), np.float32),
        "code": np.ones((rows, 1), np.int64),
        "word": np.full((rows, 1), b"a", object),
    }


if __name__ == "__main__":
    main()
