"""The SavedModels that tests predict with, and what the models themselves say of their rows.

Run as a program it makes them all: ``python -m tests.saved_models FOLDER``. Tests call it so, in
a process of its own, because an application never imports TensorFlow. It runs on every version
of TensorFlow that predictpool knows, Keras 2 and Keras 3 alike. Workers import it, too, so nothing
of pytest is in here.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictpool import Device, SavedModelPredictor, _census

Array = NDArray[Any]
Features = dict[str, Any]

ROWS = 100
WORDS = np.array([b"red", b"green", b"blue", b"nothing we know", "grün".encode()], object)


class Telling(SavedModelPredictor):
    """Tells with every answer how the model is run."""

    def predict(self, features: Any) -> Any:
        rows = len(next(iter(features.values())))
        told = np.full(rows, str(self.method).encode(), object)
        return {**super().predict(features), "method": told}


class WithThreads(SavedModelPredictor):
    """Tells how many threads TensorFlow was given on a device that has three."""

    def load(self, device: Device) -> None:
        super().load(Device(cores=device.cores, threads=3))

    def predict(self, features: Any) -> Any:
        import tensorflow as tf

        super().predict(features)
        if self.method == "session":
            model: Any = self._model
            config = model._session._config
            threads = (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads)
        else:
            of = tf.config.threading
            threads = (of.get_intra_op_parallelism_threads(), of.get_inter_op_parallelism_threads())
        return {"threads": np.array([threads] * len(next(iter(features.values()))))}


# --- Keras -------------------------------------------------------------------------


def keras_model() -> Any:
    """Numbers and text, dropout and batch norm; two outputs."""
    import tensorflow as tf

    layers = tf.keras.layers
    vector = tf.keras.Input((4,), name="vector")
    word = tf.keras.Input((1,), dtype="string", name="word")
    known = layers.StringLookup(vocabulary=["red", "green", "blue"])(word)
    embedded = layers.Flatten()(layers.Embedding(4, 3)(known))
    hidden = layers.Dense(16, activation="relu")(layers.Concatenate()([vector, embedded]))
    hidden = layers.Dropout(0.3)(layers.BatchNormalization()(hidden))
    outputs = {
        "score": layers.Dense(1)(hidden),
        "classes": layers.Dense(3, activation="softmax")(hidden),
    }
    return tf.keras.Model([vector, word], outputs)


def make_keras(folder: Path, rows: Features) -> Any:
    model = keras_model()
    model.export(str(folder))
    return model([to_tensor(rows["vector"]), to_tensor(rows["word"])])


def make_keras_saved(folder: Path, rows: Features) -> Any:
    """What Keras 3 saves so cannot run in a session: it would find no variables there."""
    import tensorflow as tf

    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [tf.keras.Input((4,)), layers.Dense(8), layers.BatchNormalization()]
    )
    tf.saved_model.save(model, str(folder))
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    (name,) = served.structured_outputs
    return {name: model(to_tensor(rows["x"]))}


# --- functions of TensorFlow 2 -----------------------------------------------------


def tables() -> Any:
    """A module with tables, one read from an asset and one that is restored, and a variable."""
    import tensorflow as tf

    class Tables(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            lookup = tf.lookup
            self.words = lookup.StaticHashTable(
                lookup.TextFileInitializer(
                    str(words),
                    tf.string,
                    lookup.TextFileIndex.WHOLE_LINE,
                    tf.int64,
                    lookup.TextFileIndex.LINE_NUMBER,
                ),
                -1,
            )
            self.weight = tf.Variable([2.0, -3.0])
            self.prices = lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)
            self.prices.insert(["red", "green"], [1.5, 2.5])

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[
                tf.TensorSpec([None], tf.string, "word"),
                tf.TensorSpec([None, 2], tf.float32, "x"),
            ]
        )
        def serve(self, word: Any, x: Any) -> Any:
            return {
                "number": self.words.lookup(word),
                "price": self.prices.lookup(word),
                "weighted": x * self.weight,
                "word": tf.strings.join([word, b"!"]),
            }

    words = Path("words.txt")
    words.write_text("red\ngreen\nblue\n")
    return Tables()


def make_tables(folder: Path, rows: Features) -> Any:
    import tensorflow as tf

    module = tables()
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return module.serve(to_tensor(rows["word"]), to_tensor(rows["x"]))


def make_without_saver(folder: Path, rows: Features) -> Any:
    """In a session its variables would be missing, and a table silently empty."""
    import tensorflow as tf

    module = tables()
    options = tf.saved_model.SaveOptions(experimental_skip_saver=True)
    tf.saved_model.save(module, str(folder), signatures=module.serve, options=options)
    return module.serve(to_tensor(rows["word"]), to_tensor(rows["x"]))


def make_functions(folder: Path, rows: Features) -> Any:
    """Many signatures, most of which no pool can serve; the expected answers are of "images"."""
    import tensorflow as tf

    def signature(serve: Callable[..., Any], *specs: Any) -> Any:
        return tf.function(serve, input_signature=specs)

    def spec(shape: Any, dtype: Any = tf.float32) -> Any:
        return tf.TensorSpec(shape, dtype, "x")

    module = tf.Module()
    functions = {
        "centred": signature(lambda x: {"y": x - tf.reduce_mean(x)}, spec([None])),
        "constant": signature(lambda x: {"y": x, "z": module.two}, spec([None])),
        "fixed": signature(lambda x: {"y": x}, spec([1, 3])),
        "half": signature(lambda x: {"y": x}, spec([None], tf.bfloat16)),
        "halved": signature(lambda x: {"y": tf.cast(x, tf.bfloat16)}, spec([None])),
        "images": signature(
            lambda x: {"mean": tf.reduce_mean(tf.cast(x, tf.float32), [1, 2]), "image": x},
            spec([None, None, 2, 3], tf.uint8),
        ),
        "no_rank": signature(lambda x: {"y": x}, spec(None)),
        "nothing": signature(lambda: {"y": module.two}),
        "ragged": signature(lambda x: {"y": tf.RaggedTensor.from_tensor(x)}, spec([None, 2])),
        "some_rank": signature(
            lambda x: {"y": tf.reshape(x, tf.boolean_mask(tf.shape(x), [True, True]))},
            spec([None, 2]),
        ),
    }
    module.two = tf.Variable(2.0)
    module.functions = functions
    tf.saved_model.save(module, str(folder), signatures=functions)
    return functions["images"](to_tensor(rows["x"]))


def make_examples(folder: Path, rows: Features) -> Any:
    """Takes serialized ``tf.train.Example`` messages."""
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(3.0)
    features = {"number": tf.io.FixedLenFeature([], tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])  # type: ignore[untyped-decorator]
    def serve(examples: Any) -> Any:
        return {"tripled": module.weight * tf.io.parse_example(examples, features)["number"]}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"predict": serve, "other": serve})
    return serve(to_tensor(rows["examples"]))


# --- graphs of TensorFlow 1 --------------------------------------------------------


def make_graph(folder: Path, rows: Features) -> Any:
    """Reference variables, and rows of their own lengths, which are fed as a sparse tensor."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        bag = v1.sparse_placeholder(tf.float32, [None, None], "bag")
        weight = v1.get_variable("w", [3], initializer=tf.ones_initializer(), use_resource=False)
        outputs = {"bag": v1.sparse_reduce_sum(bag, 1), "x": x * weight + 1.0}
        session.run(v1.global_variables_initializer())
        save_graph(session, folder, {"x": x, "bag": bag}, outputs)
        lengths = [len(row) for row in rows["bag"]]
        places = [(row, column) for row, length in enumerate(lengths) for column in range(length)]
        sparse = v1.SparseTensorValue(places, np.concatenate(rows["bag"]), [ROWS, max(lengths)])
        return session.run(outputs, {x: rows["x"], bag: sparse})


def make_no_variables(folder: Path, rows: Features, more: int = 1) -> Any:
    """There is nothing in its folder of variables."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.int32, [None], "x")
        outputs = {"y": x + more}
        save_graph(session, folder, {"x": x}, outputs)
        return session.run(outputs, {x: rows["x"]})


def save_graph(session: Any, folder: Path, inputs: Any, outputs: Any) -> None:
    import tensorflow as tf

    saved_model = tf.compat.v1.saved_model
    info = saved_model.build_tensor_info
    signature = saved_model.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()},
    )
    builder = saved_model.Builder(str(folder))
    builder.add_meta_graph_and_variables(session, ["serve"], {"only": signature})
    builder.save()


# --- an Estimator ------------------------------------------------------------------


def make_estimator(folder: Path, rows: Features) -> Any:
    """A canned Estimator, exported in a folder of versions as it does by itself."""
    import tensorflow as tf

    columns = tf.feature_column
    word = columns.categorical_column_with_vocabulary_list("word", ["red", "green", "blue"])
    estimator = tf.estimator.DNNClassifier(
        [8, 4],
        [columns.numeric_column("x", (3,)), columns.indicator_column(word)],
        model_dir=str(folder.with_suffix(".trained")),
        n_classes=3,
        batch_norm=True,
        dropout=0.2,
    )

    def rows_and_labels() -> Any:
        labels = np.arange(ROWS) % 3
        return tf.data.Dataset.from_tensor_slices((rows, labels)).repeat().batch(32)

    def receiver() -> Any:
        placeholder = tf.compat.v1.placeholder
        inputs = {"x": placeholder(tf.float32, [None, 3]), "word": placeholder(tf.string, [None])}
        return tf.estimator.export.ServingInputReceiver(inputs, inputs)

    estimator.train(rows_and_labels, steps=20)
    estimator.export_saved_model(str(folder), receiver)
    (expected,) = estimator.predict(
        lambda: tf.data.Dataset.from_tensor_slices(rows).batch(ROWS), yield_single_examples=False
    )
    return expected


# --- rows --------------------------------------------------------------------------


def random() -> np.random.Generator:
    return np.random.default_rng(5)


def vectors(width: int) -> Array:
    return random().normal(size=(ROWS, width)).astype(np.float32)


def words() -> Array:
    chosen: Array = WORDS[random().integers(0, len(WORDS), ROWS)]
    return chosen


def bags() -> Array:
    rows = np.empty(ROWS, object)
    for row, length in enumerate(random().integers(0, 5, ROWS)):
        rows[row] = np.arange(length, dtype=np.float32) + row
    return rows


def examples() -> Array:
    """Serialized by hand, so that the application can make them, too."""
    rows = np.empty(ROWS, object)
    for row, number in enumerate(vectors(1)):
        floats = b"\x12\x06" + b"\x0a\x04" + number.tobytes()
        entry = b"\x0a\x06number" + b"\x12" + bytes([len(floats)]) + floats
        features = b"\x0a" + bytes([len(entry)]) + entry
        rows[row] = b"\x0a" + bytes([len(features)]) + features
    return rows


Make = Callable[[Path, Features], Any]
MODELS: dict[str, tuple[Make, Callable[[], Features]]] = {
    "keras": (make_keras, lambda: {"vector": vectors(4), "word": words()[:, None]}),
    "keras_saved": (make_keras_saved, lambda: {"x": vectors(4)}),
    "tables": (make_tables, lambda: {"word": words(), "x": vectors(2)}),
    "without_saver": (make_without_saver, lambda: {"word": words(), "x": vectors(2)}),
    "functions": (
        make_functions,
        lambda: {"x": random().integers(0, 255, (ROWS, 4, 2, 3)).astype(np.uint8)},
    ),
    "examples": (make_examples, lambda: {"examples": examples()}),
    "graph": (make_graph, lambda: {"x": vectors(3), "bag": bags()}),
    "no_variables": (make_no_variables, lambda: {"x": np.arange(ROWS, dtype=np.int32)}),
    "estimator": (make_estimator, lambda: {"x": vectors(3), "word": words()}),
}


def to_tensor(values: Any) -> Any:
    import tensorflow as tf

    return tf.constant(values)


def make_all(folder: Path) -> None:
    """Make each model, and write down what it says of its rows."""
    _census.silence()
    import tensorflow as tf

    os.chdir(folder)
    for name, (make, rows) in MODELS.items():
        if name == "estimator" and not hasattr(tf, "estimator"):
            continue
        answers = make(folder / name, rows())
        expected = {key: np.asarray(answers[key]) for key in sorted(answers)}
        (folder / f"{name}.expected").write_bytes(pickle.dumps(expected))
    make_no_variables(folder / "next_version", MODELS["no_variables"][1](), more=2)
    (folder / "words.txt").unlink()  # the model has its own


# --- models that cannot be loaded --------------------------------------------------


def spoil(folder: Path, model: Path, edit: Callable[[Any], None]) -> Path:
    """Copy a model, and change what its ``saved_model.pb`` says."""
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(model, folder)
    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    edit(saved.meta_graphs[0])
    file.write_bytes(saved.SerializeToString())
    return folder


def add_operation(graph: Any, operation: str) -> None:
    graph.node.add(name="added", op=operation)


def what_load_says(folder: Path) -> dict[str, str]:
    """Load models that cannot be loaded; return what is said, or the signature that is taken."""
    graph, functions = folder / "graph", folder / "functions"

    def consumer(meta_graph: Any) -> None:
        meta_graph.graph_def.versions.min_consumer = 10**6
        meta_graph.meta_info_def.tensorflow_version = "9.8.7"

    def tag(meta_graph: Any) -> None:
        meta_graph.meta_info_def.tags[:] = ["train"]

    def operation(name: str) -> Callable[[Any], None]:
        return lambda meta_graph: add_operation(meta_graph.graph_def, name)

    edits: dict[str, Callable[[Any], None]] = {
        "trees": operation("BoostedTreesEnsembleResourceHandleOp"),
        "unknown": operation("NobodysOp"),
        "newer": consumer,
        "train": tag,
        "mute": lambda meta_graph: meta_graph.signature_def.clear(),
    }
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        name: (spoil(folder / name, graph, edit), {}) for name, edit in edits.items()
    }
    cases["several"] = (functions, {})
    cases["wrong name"] = (functions, {"signature": "image"})
    cases["wrong feature"] = (graph, {"allow_nan": ["y"]})
    for name in ("fixed", "half", "halved", "no_rank", "nothing", "ragged"):
        cases[name] = (functions, {"signature": name})
    for name in ("graph", "keras", "examples"):
        cases[f"chosen of {name}"] = (folder / name, {})
    return {name: _said(path, options) for name, (path, options) in cases.items()}


def _said(path: Path, options: dict[str, Any]) -> str:
    predictor = SavedModelPredictor(path, **options)
    try:
        predictor.load(Device())
    except Exception as error:  # noqa: BLE001 - which one it is is what is asked
        return f"{type(error).__name__}: {error}"
    return str(predictor.signature)


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "said").write_bytes(pickle.dumps(what_load_says(Path(sys.argv[1]))))
