"""The Keras models that tests predict with, and what each says of its rows when it is called.

Run as a program it makes and saves them all: ``python -m tests.keras_models FOLDER``. Tests call
it so, in a process of its own, because an application never imports TensorFlow. Workers import
it, too, so nothing of pytest is in here. All of it runs on Keras 2 and on Keras 3.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROWS = 100

WORDS = np.array(["red", "green", "blue", "mauve"], object)


@dataclass(frozen=True)
class Model:
    """A model that tests know.

    Attributes:
        build: makes it; gets the ``tf.keras`` module.
        rows: makes the features for a pool: an array, or a mapping.
        names: of the outputs, where the model returns a list of them.
        suffixes: of the files that it is saved to.
    """

    build: Callable[[Any], Any]
    rows: Callable[[np.random.Generator], Any]
    names: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = (".keras",)


# --- one input ---------------------------------------------------------------------


def build_dense(keras: Any) -> Any:
    """Batch norm and dropout: what training leaves behind, and what inference leaves out."""
    layers = keras.layers
    inputs = keras.Input((5,), name="numbers")
    hidden = layers.Dense(16, activation="relu")(inputs)
    hidden = layers.Dropout(0.5)(layers.BatchNormalization(momentum=0.5)(hidden))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
    for _ in range(5):
        model(np.random.default_rng(0).normal(3.0, 2.0, (64, 5)).astype(np.float32), training=True)
    return model


def build_sequential(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(8, activation="tanh"), layers.Dense(1)]
    )


def build_sequential_fitted(keras: Any) -> Any:
    """A Sequential whose shape came with the first batch, and with it the number of rows."""
    model = keras.Sequential([keras.layers.Dense(3)])
    model(np.zeros((4, 5), np.float32))
    return model


def build_image(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, None, 3), dtype="uint8")
    hidden = layers.Conv2D(4, 3, activation="relu", padding="same")(
        layers.Rescaling(1 / 255)(inputs)
    )
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))


def build_tokens(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None,), dtype="int64")
    hidden = layers.LSTM(6)(layers.Embedding(20, 4)(inputs))
    return keras.Model(inputs, layers.Dense(2)(hidden))


def build_ragged(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None,), dtype="int64", ragged=True)
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(inputs))
    return keras.Model(inputs, layers.Dense(2)(hidden))


def build_text(keras: Any) -> Any:
    layers = keras.layers
    vectorize = layers.TextVectorization(
        vocabulary=["red", "green", "fish"], output_sequence_length=4
    )
    inputs = keras.Input((), dtype="string")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(6, 3)(vectorize(inputs)))
    return keras.Model(inputs, layers.Dense(1)(hidden))


def build_labels(keras: Any) -> Any:
    """Integers in, text out."""
    inputs = keras.Input((2,), dtype="int64")
    lookup = keras.layers.StringLookup(vocabulary=["red", "green"], invert=True)
    return keras.Model(inputs, lookup(inputs))


def build_states(keras: Any) -> Any:
    """One layer with three outputs."""
    inputs = keras.Input((3, 2))
    return keras.Model(inputs, keras.layers.LSTM(4, return_state=True, name="lstm")(inputs))


def build_custom(keras: Any) -> Any:
    inputs = keras.Input((5,))
    return keras.Model(inputs, scale_layer()(2.0)(inputs))


def build_half(keras: Any) -> Any:
    """Outputs of a dtype that numpy does not have."""
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(2, dtype="bfloat16")(inputs))


def build_nested(keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((5,))
    outputs = {"pair": [layers.Dense(1)(inputs), layers.Dense(2)(inputs)], "one": inputs}
    return keras.Model(inputs, outputs)


def build_branching() -> Any:
    """A layer with Python for AutoGraph in it, as Keras 2 takes it and Keras 3 does not."""
    import tensorflow as tf

    class Clip(tf.keras.layers.Layer):  # type: ignore[misc]
        def call(self, values: Any) -> Any:
            if tf.reduce_any(values > 1.0):
                values = tf.minimum(values, 1.0)
            return values

    inputs = tf.keras.Input((3,))
    return tf.keras.Model(inputs, Clip()(inputs))


# --- several inputs ----------------------------------------------------------------


def build_mapping(keras: Any) -> Any:
    """A dict of inputs whose keys are not their names, and one of outputs; preprocessing inside."""
    layers = keras.layers
    inputs = {
        "word": keras.Input((1,), dtype="string", name="a_word"),
        "age": keras.Input((1,), name="an_age"),
        "code": keras.Input((1,), dtype="int64", name="a_code"),
    }
    normalize = layers.Normalization(mean=[40.0], variance=[100.0])
    one_hot = layers.CategoryEncoding(num_tokens=8, output_mode="one_hot")
    lookup = layers.StringLookup(vocabulary=["red", "green", "blue"], output_mode="one_hot")
    hashing = layers.Hashing(num_bins=8)
    hidden = layers.Concatenate()(
        [normalize(inputs["age"]), lookup(inputs["word"]), one_hot(hashing(inputs["code"]))]
    )
    hidden = layers.Dense(8, activation="relu")(hidden)
    return keras.Model(
        inputs, {"score": layers.Dense(1)(hidden), "classes": layers.Dense(3, "softmax")(hidden)}
    )


def build_lists(keras: Any) -> Any:
    """A list of inputs in no alphabetical order, and a list of outputs."""
    layers = keras.layers
    wide, deep = keras.Input((3,), name="wide"), keras.Input((2,), name="deep")
    both = layers.Concatenate()([wide, layers.Dense(4)(deep)])
    return keras.Model(
        [wide, deep], [layers.Dense(1, name="zero")(both), layers.Dense(2, name="one")(both)]
    )


def build_single_key(keras: Any) -> Any:
    inputs = {"x": keras.Input((3,), name="x")}
    return keras.Model(inputs, {"y": keras.layers.Dense(2)(inputs["x"])})


# --- rows --------------------------------------------------------------------------


def numbers(random: np.random.Generator) -> Array:
    return random.normal(size=(ROWS, 5)).astype(np.float32)


def mapping_rows(random: np.random.Generator) -> Any:
    return {
        "word": WORDS[random.integers(0, 4, (ROWS, 1))],
        "age": random.normal(40, 10, (ROWS, 1)).astype(np.float32),
        "code": random.integers(0, 1000, (ROWS, 1)),
    }


def list_rows(random: np.random.Generator) -> Any:
    return {
        "wide": random.normal(size=(ROWS, 3)).astype(np.float32),
        "deep": random.normal(size=(ROWS, 2)).astype(np.float32),
    }


def ragged_rows(random: np.random.Generator) -> Array:
    rows = np.empty(ROWS, object)
    rows[:] = [random.integers(0, 20, length) for length in 1 + np.arange(ROWS) % 5]
    return rows


def text_rows(random: np.random.Generator) -> Array:
    texts = [
        " ".join(WORDS[random.integers(0, 4, length)]) for length in random.integers(0, 6, ROWS)
    ]
    return np.array(texts, object)


NUMERIC = (".keras", ".h5")
MODELS = {
    "dense": Model(build_dense, numbers, suffixes=NUMERIC),
    "sequential": Model(build_sequential, numbers, suffixes=NUMERIC),
    "sequential_fitted": Model(build_sequential_fitted, numbers),
    "image": Model(build_image, lambda random: random.integers(0, 256, (ROWS, 9, 7, 3), np.uint8)),
    "tokens": Model(
        build_tokens, lambda random: random.integers(0, 20, (ROWS, 6)), suffixes=NUMERIC
    ),
    "ragged": Model(build_ragged, ragged_rows),
    "text": Model(build_text, text_rows),
    "labels": Model(build_labels, lambda random: random.integers(0, 3, (ROWS, 2))),
    "states": Model(
        build_states,
        lambda random: random.normal(size=(ROWS, 3, 2)).astype(np.float32),
        names=("lstm", "lstm_1", "lstm_2"),
    ),
    "mapping": Model(build_mapping, mapping_rows),
    "lists": Model(build_lists, list_rows, names=("zero", "one"), suffixes=NUMERIC),
    "single_key": Model(
        build_single_key, lambda random: {"x": random.normal(size=(ROWS, 3)).astype(np.float32)}
    ),
}


def features_of(name: str) -> Any:
    return MODELS[name].rows(np.random.default_rng(7))


# --- functions that load a model ---------------------------------------------------


@functools.cache
def scale_layer() -> Any:
    """A layer of the user's own. It says in a journal whenever its Python runs."""
    import tensorflow as tf

    @tf.keras.utils.register_keras_serializable("tests")
    class Scale(tf.keras.layers.Layer):  # type: ignore[misc]
        journal: Path | None = None

        def __init__(self, factor: float, **options: Any) -> None:
            super().__init__(**options)
            self.factor = factor

        def call(self, values: Any) -> Any:
            if Scale.journal is not None:
                with Scale.journal.open("a") as lines:
                    lines.write("call\n")
            return self.factor * values

        def get_config(self) -> Any:
            return {**super().get_config(), "factor": self.factor}

    return Scale


def load_custom(path: Path, journal: Path | None = None) -> Any:
    """Register the layer before its model is loaded, as a user's module does."""
    import tensorflow as tf

    scale_layer()
    model = tf.keras.models.load_model(path, compile=False)
    scale_layer().journal = journal
    return model


# --- the program -------------------------------------------------------------------


def save_all(folder: Path) -> None:
    """Save each model, and write down what it says of its rows."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(11)
    for name, model in MODELS.items():
        built = model.build(tf.keras)
        for suffix in model.suffixes:
            built.save(folder / f"{name}{suffix}")
        features = features_of(name)
        if name == "ragged":
            given = tf.ragged.constant(list(features))
        elif name == "lists":
            given = [features["wide"], features["deep"]]
        else:
            given = tf.nest.map_structure(tf.constant, features)
        outputs = tf.nest.map_structure(lambda tensor: tensor.numpy(), built(given, training=False))
        if model.names:
            outputs = dict(zip(model.names, outputs, strict=True))
        (folder / f"{name}.expected").write_bytes(pickle.dumps(outputs))
    build_custom(tf.keras).save(folder / "custom.keras")


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
