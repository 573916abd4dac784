"""Keras files: loading them, and saying in one line why one cannot be loaded."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

_SUFFIXES = (".keras", ".h5", ".hdf5")

# How Keras 2 and 3 name a layer or a function that they do not know.
_UNKNOWN = re.compile(
    r"(?:Could not locate (?:class|function)|Cannot deserialize object of type|"
    r"Unknown (?:layer|object|\w+ function):) ['`](?P<name>[\w>]+)['`]"
    r"|Unknown \w+ function '\{.*?'config': '(?P<function>\w+)'"
)


def load_file(path: str) -> Any:
    """Load a model from a ``.keras`` or ``.h5`` file, without what only training needs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of Keras, or Keras cannot load it.
    """
    import tensorflow as tf

    _require_file(Path(path))
    try:
        return tf.keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"{path!r} {_why_not(path, str(error))}") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}, seen from {Path.cwd()}")
    if (path / "saved_model.pb").exists():
        raise ValueError(
            f"{str(path)!r} is a SavedModel, expected a .keras or .h5 file: "
            "SavedModelPredictor loads it"
        )
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, expected a .keras or .h5 file")
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{str(path)!r} has the suffix {path.suffix!r}, expected .keras or .h5, as "
            "model.save() writes them"
        )


def _why_not(path: str, said: str) -> str:
    """Return what is wrong with a file that Keras could not load, and what to do."""
    written, running = _written_by(path), _running()
    if unknown := _UNKNOWN.search(said):
        return (
            f"has {unknown['name'] or unknown['function']!r}, which Keras does not know: register "
            "it with @keras.saving.register_keras_serializable(), and give KerasPredictor a "
            "function that imports its module and returns keras.models.load_model(path)"
        )
    if "safe_mode" in said:
        return (
            "has a Lambda layer, which may run any code: if you trust the file, give "
            "KerasPredictor a function that returns keras.models.load_model(path, safe_mode=False)"
        )
    if "No model config" in said:
        return (
            "has weights alone: give KerasPredictor a function that builds the model, calls "
            "model.load_weights(path) and returns it"
        )
    if written is None:
        return "is damaged, or no file of Keras: it is neither a zip file nor HDF5, or ends early"
    return (
        f"was written by Keras {written}, and Keras {running} cannot load it ({_gist(said)}): "
        f"{_remedy(_major(written), _major(running))}, or save it as a SavedModel where it was "
        "written, for SavedModelPredictor"
    )


def _remedy(written: int, running: int) -> str:
    if written < running:
        return "pip install tf_keras and set TF_USE_LEGACY_KERAS=1"
    if written > running:
        return f"use a TensorFlow with Keras {written} (2.16 or newer, for Keras 3)"
    return "use the version that wrote it"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _written_by(path: str) -> str | None:
    """Return the version of the Keras that wrote a file; None where it does not tell."""
    import h5py

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" not in archive.namelist():
                return None
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version")
    return version.decode() if isinstance(version, bytes) else version


def _running() -> str:
    """Return the version of the Keras that ``tf.keras`` is; it may be tf_keras."""
    import tensorflow as tf

    return str(sys.modules[tf.keras.Model.__module__.partition(".")[0]].__version__)


def _gist(said: str) -> str:
    """Return the innermost of Keras' nested messages, without the model's configuration."""
    innermost = said.rpartition("Exception encountered: ")[2]
    return innermost.strip().partition("\n")[0].partition(" Full object config")[0].rstrip(".")
