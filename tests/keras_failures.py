"""Keras models that cannot be loaded, and what KerasPredictor says of each.

Run as a program it tries them all: ``python -m tests.keras_failures FOLDER``, where the models of
`tests.keras_models` are saved already. Tests call it so, in a process of its own, because an
application never imports TensorFlow. All of it runs on Keras 2 and on Keras 3.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from predictpool import Device, KerasPredictor


class Cases:
    """Each method makes one, and returns what KerasPredictor is given.

    Args:
        folder: where the models of `tests.keras_models` are.
        keras: the ``tf.keras`` module.
    """

    def __init__(self, folder: Path, keras: Any) -> None:
        self.folder = folder
        self.keras = keras

    # files

    def missing(self) -> Path:
        return self.folder / "missing.keras"

    def saved_model(self) -> Path:
        (self.folder / "exported").mkdir()
        (self.folder / "exported" / "saved_model.pb").touch()
        return self.folder / "exported"

    def directory(self) -> Path:
        (self.folder / "directory.keras").mkdir()
        return self.folder / "directory.keras"

    def suffix(self) -> Path:
        (self.folder / "model.tflite").touch()
        return self.folder / "model.tflite"

    def junk_keras(self) -> Path:
        (self.folder / "junk.keras").write_text("not a zip file")
        return self.folder / "junk.keras"

    def junk_h5(self) -> Path:
        (self.folder / "junk.h5").write_text("not HDF5")
        return self.folder / "junk.h5"

    def cut(self) -> Path:
        whole = (self.folder / "dense.keras").read_bytes()
        (self.folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
        return self.folder / "cut.keras"

    def weights(self) -> Path:
        model = self.keras.Sequential([self.keras.Input((2,)), self.keras.layers.Dense(1)])
        model.save_weights(self.folder / "model.weights.h5")
        return self.folder / "model.weights.h5"

    def custom_layer(self) -> Path:
        return self.folder / "custom.keras"

    def custom_layer_h5(self) -> Path:
        keras: Any = self.keras

        class Shift(keras.layers.Layer):  # type: ignore[misc]
            def call(self, values: Any) -> Any:
                return values + 1.0

        inputs = self.keras.Input((2,))
        self.keras.Model(inputs, Shift()(inputs)).save(self.folder / "shift.h5")
        return self.folder / "shift.h5"

    def custom_function(self) -> Path:
        def threefold(values: Any) -> Any:
            return values * 3.0

        inputs = self.keras.Input((2,))
        hidden = self.keras.layers.Dense(1, activation=threefold)(inputs)
        self.keras.Model(inputs, hidden).save(self.folder / "function.keras")
        return self.folder / "function.keras"

    def lambda_layer(self) -> Path:
        inputs = self.keras.Input((2,))
        hidden = self.keras.layers.Lambda(lambda values: values + 1.0)(inputs)
        self.keras.Model(inputs, hidden).save(self.folder / "lambda.keras")
        return self.folder / "lambda.keras"

    def older_keras(self) -> Path:
        """A file of a Keras that was long ago: it has a class that no other has."""
        return self._rewritten("older.keras", "1.2.0")

    def newer_keras(self) -> Path:
        """A file of a Keras that will never be."""
        return self._rewritten("newer.keras", "9.1.0")

    def same_keras(self) -> Path:
        """A file of the Keras that is running, but for a class that it does not have."""
        return self._rewritten("same.keras", None)

    def _rewritten(self, name: str, version: str | None) -> Path:
        with (
            zipfile.ZipFile(self.folder / "dense.keras") as dense,
            zipfile.ZipFile(self.folder / name, "w") as other,
        ):
            for item in dense.namelist():
                data = dense.read(item)
                if item == "config.json":
                    config = json.loads(data)
                    config["module"], config["class_name"] = "keras.of.another.day", "Model"
                    config["registered_name"] = "Model"
                    data = json.dumps(config).encode()
                if item == "metadata.json" and version is not None:
                    data = json.dumps({"keras_version": version}).encode()
                other.writestr(item, data)
        return self.folder / name

    # models

    def no_model(self) -> Callable[[], Any]:
        return dict

    def not_built(self) -> Callable[[], Any]:
        return lambda: self.keras.Sequential([self.keras.layers.Dense(1)], name="unbuilt")

    def subclass(self) -> Callable[[], Any]:
        keras: Any = self.keras

        class Own(keras.Model):  # type: ignore[misc]
            def call(self, values: Any) -> Any:
                return values

        return lambda: Own(name="own")

    def stateful(self) -> Callable[[], Any]:
        def load() -> Any:
            layers = self.keras.layers
            inputs = self.keras.Input(batch_shape=(1, 3, 2))
            inner = self.keras.Model(inputs, layers.LSTM(2, stateful=True, name="memory")(inputs))
            return self.keras.Sequential([inputs, inner])

        return load

    def sparse(self) -> Callable[[], Any]:
        def load() -> Any:
            inputs = self.keras.Input((4,), sparse=True, name="words")
            return self.keras.Model(inputs, self.keras.layers.Dense(1)(inputs))

        return load

    def nested_inputs(self) -> Callable[[], Any]:
        def load() -> Any:
            one, two = self.keras.Input((1,), name="one"), self.keras.Input((1,), name="two")
            both = self.keras.layers.Concatenate()([one, two])
            return self.keras.Model({"pair": [one, two]}, both)

        return load

    def ragged_output(self) -> Callable[[], Any]:
        def load() -> Any:
            inputs = self.keras.Input((), dtype="string")
            vectorize = self.keras.layers.TextVectorization(vocabulary=["red"], ragged=True)
            return self.keras.Model(inputs, {"tokens": vectorize(inputs)})

        return load

    def unknown_option(self) -> Callable[[], Any]:
        return lambda: self.keras.models.load_model(self.folder / "mapping.keras")

    def backend(self) -> Path:
        self.keras.backend.backend = lambda: (
            "jax"
        )  # to the end of the process, so this is the last one
        return self.folder / "dense.keras"


# In the order of their definition; "backend" is the last one.
CASES = [name for name in vars(Cases) if not name.startswith("_")]


def try_all(folder: Path) -> None:
    """Write down, as JSON, what each case raises."""
    import tensorflow as tf

    said: dict[str, Any] = {
        "version": sys.modules[tf.keras.Model.__module__.partition(".")[0]].__version__
    }
    cases = Cases(folder, tf.keras)
    for name in CASES:
        options: Any = {"missing": {"years": 0.0}} if name == "unknown_option" else {}
        predictor = KerasPredictor(getattr(cases, name)(), **options)
        try:
            predictor.load(Device())
            said[name] = "nothing"
        except Exception as error:  # noqa: BLE001 - which one it is, the test looks at
            said[name] = f"{type(error).__name__}: {error}"
    (folder / "failures.json").write_text(json.dumps(said))


if __name__ == "__main__":
    try_all(Path(sys.argv[1]))
