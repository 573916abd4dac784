"""Which SavedModel a path stands for: itself, or the newest version in it that is whole.

No TensorFlow in here: the application may ask, too.

A version is written while others look at its folder. TensorFlow writes ``saved_model.pb``
last; those that copy a model write its files in any order, and a file is there before its
last byte is. So the files themselves are asked.
"""

from __future__ import annotations

from pathlib import Path

from predictpool.predictors._model_files import MODEL_FILE, CutOff, file_sizes, read_contents


def find_model(path: Path) -> Path:
    """Return the folder of the SavedModel that a path stands for.

    Args:
        path: the folder of a SavedModel, or one of versions, whose names are numbers.

    Returns:
        the path itself, or its version of the highest number that is whole.

    Raises:
        FileNotFoundError: there is none; the message says what is there instead.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {str(path)!r}: expected the folder of a SavedModel, or a folder of its "
            "versions (1, 2, …)"
        )
    if path.is_dir():
        if (path / MODEL_FILE).exists():
            _require_whole(path)
            return path
        versions = _versions(path)
        for version in versions:
            if lacks(version) is None:
                return version
        if versions:
            raise FileNotFoundError(_none_is_whole(path, versions))
    raise FileNotFoundError(_no_saved_model(path))


def lacks(folder: Path) -> str | None:
    """Return what a SavedModel lacks, as one that is being written does; None if it is whole."""
    try:
        contents = read_contents(folder / MODEL_FILE)
    except FileNotFoundError:
        return f"there is no {MODEL_FILE}"
    except CutOff:
        return f"{MODEL_FILE} is cut off"
    if contents.variables and (missing := _lacking_variables(folder)):
        return missing
    absent = [name for name in contents.assets if not (folder / "assets" / name).exists()]
    return f"there is no assets/{absent[0]}" if absent else None


def _lacking_variables(folder: Path) -> str | None:
    index = folder / "variables" / "variables.index"
    name = f"{index.parent.name}/{index.name}"
    try:
        sizes = file_sizes(index)
    except FileNotFoundError:
        return f"there is no {name}"
    except CutOff:
        return f"{name} is cut off"
    for number, size in sizes.items():
        name = f"variables/variables.data-{number:05}-of-{len(sizes):05}"
        if not (folder / name).exists():
            return f"there is no {name}"
        if (folder / name).stat().st_size < size:
            return f"{name} is cut off"
    return None


def _versions(path: Path) -> list[Path]:
    numbered = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    return sorted(numbered, key=lambda entry: int(entry.name), reverse=True)


# --- messages ----------------------------------------------------------------------


def _require_whole(path: Path) -> None:
    missing = lacks(path)
    if missing is not None:
        raise FileNotFoundError(
            f"the SavedModel in {str(path)!r} is not whole: {missing}. It is still being written, "
            "or was not copied to its end"
        )


def _none_is_whole(path: Path, versions: list[Path]) -> str:
    found = "; ".join(f"{version.name}: {lacks(version)}" for version in versions[:3])
    return (
        f"no version in {str(path)!r} is whole ({found}): they are still being written, or were "
        "not copied to their end"
    )


def _no_saved_model(path: Path) -> str:
    """Say what a path is, if it is no SavedModel, and what takes it."""
    if path.is_file():
        said = f"{str(path)!r} is a file"
        if path.name == MODEL_FILE:
            return f"{said}: expected the folder that it is in, {str(path.parent)!r}"
        if path.suffix in (".keras", ".h5", ".hdf5"):
            return f"{said} of Keras: KerasPredictor({str(path)!r}) takes it"
        return f"{said}, expected the folder of a SavedModel"
    names = sorted(entry.name for entry in path.iterdir())
    said = f"there is no {MODEL_FILE} in {str(path)!r}"
    keras = [name for name in names if name.endswith((".keras", ".h5", ".hdf5"))]
    if keras:
        return f"{said}, but the Keras file {keras[0]!r}: KerasPredictor takes that"
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        return (
            f"{said}, but a checkpoint: EstimatorPredictor takes the function that builds its "
            "Estimator; `predictpool export` makes a SavedModel of it"
        )
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return (
        f"{said} and no version of one (1, 2, …): there is {shown or 'nothing'}. tf.saved_model."
        "save, model.export and estimator.export_saved_model write one"
    )
