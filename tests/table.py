"""The table of the documentation: what works where, how exactly, and how fast.

Each lane of `.ci/run` has an environment of its own and fills in its lines:
``python -m tests.table measure LINES.json``. Where TensorFlow has Estimators, that also exports
some into ``PREDICTPOOL_EXPORTED``; elsewhere it serves what is there. ``python -m tests.table write
LINES.json...`` makes the table of all of them, in docs/reference/models.md.

Every kind of model is asked in a pool with one worker, on asyncio, and held against what the model
says when it is called directly, without a pool.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from predictpool import (
    EstimatorPredictor,
    FunctionPredictor,
    KerasPredictor,
    PredictorPool,
    WorkerStartError,
)
from predictpool._export import named_output
from tests import exported, keras_models, models, needs, saved_models
from tests.answers import METHODS, rows_of
from tests.mutations import ROOT

PAGE = ROOT / "docs" / "reference" / "models.md"
BEGIN, END = "<!-- table: python -m tests.table -->", "<!-- end of the table -->"

TOLERANCE = 2e-5  # relative and absolute: kernels differ with the number of rows
SIZES = (1, 2, 7, 64)  # rows of the requests that are compared
CALLS = 500  # of one row, for the median


@dataclass(frozen=True)
class Line:
    """What was found for one kind of model, in one environment, by one method.

    Attributes:
        kind: what the table calls it.
        tensorflow: its version, or "none".
        method: how the predictor runs it.
        works: "yes", or why not.
        max_difference: the largest between floats of the pool and of the model called directly.
        p50_seconds: median of `predict` with one row.
        load_seconds: to load and to warm up, in a worker that was forked.
    """

    kind: str
    tensorflow: str
    method: str
    works: str
    max_difference: float | None = None
    p50_seconds: float | None = None
    load_seconds: float | None = None


@dataclass(frozen=True)
class Case:
    """A model to ask.

    Attributes:
        kind: what the table calls it.
        method: how the predictor runs it.
        predictor: what the pool gets.
        features: rows, at least as many as the longest of `SIZES`.
        expected: what the model says of them when it is called directly, by name.
    """

    kind: str
    method: str
    predictor: Any
    features: Any
    expected: dict[str, Any]


ESTIMATORS = {
    "`Estimator`, canned: wide and deep": "classifier",
    "`Estimator`, `model_fn` with dropout and batch norm": "custom",
}
EXPORTED = {
    "SavedModel, exported from that canned one": "classifier",
    "SavedModel, exported from that `model_fn`": "custom",
}
# How a SavedModel is run is for its predictor to see; what it says is held against this.
SAVED_MODELS = {
    "SavedModel of a `tf.Module` with tables": ("tables", "session"),
    "SavedModel of that module, without a saver": ("without_saver", "function"),
    "SavedModel of Keras, `model.export`": ("keras", "session"),
}
KERAS_MODELS = {
    "Keras model, dropout and batch norm": "dense",
    "Keras model, text": "text",
}
FUNCTION = "Function, numpy"

# Every kind with its methods: what the table has to have.
KINDS = {
    **dict.fromkeys(ESTIMATORS, METHODS),
    **dict.fromkeys(EXPORTED, ("session",)),
    **{kind: (method,) for kind, (_, method) in SAVED_MODELS.items()},
    **dict.fromkeys(KERAS_MODELS, ("function",)),
    FUNCTION: ("function",),
}


# --- the models --------------------------------------------------------------------


def estimator_cases(folder: Path) -> Iterator[Case]:
    for kind, name in ESTIMATORS.items():
        build, rows, signature = models.MODELS[name]
        method: Any
        for method in METHODS:
            predictor = EstimatorPredictor(
                partial(build, folder / "models"), method=method, signature=signature
            )
            record = folder / "models" / f"{name}.expected"
            expected = pickle.loads(record.read_bytes()) if needs.HAS_ESTIMATORS else {}
            yield Case(kind, method, predictor, rows()[0], expected)


def exported_cases(folder: Path) -> Iterator[Case]:
    for kind, name in EXPORTED.items():
        record = (folder / "saved" / f"{name}.record").read_bytes()
        ((features, expected),) = pickle.loads(record)
        yield saved_case(kind, "session", exported.saved_folder(folder, name), features, expected)


def saved_cases(folder: Path) -> Iterator[Case]:
    for kind, (name, method) in SAVED_MODELS.items():
        expected = pickle.loads((folder / f"{name}.expected").read_bytes())
        features = saved_models.MODELS[name][1]()
        yield saved_case(kind, method, folder / name, features, expected)


def saved_case(kind: str, method: str, path: Path, features: Any, expected: Any) -> Case:
    """Return a case in which the predictor has to tell that it runs the model so."""
    rows = len(next(iter(expected.values())))
    told = {**expected, "method": np.full(rows, method.encode(), object)}
    return Case(kind, method, saved_models.Telling(path), features, told)


def keras_cases(folder: Path) -> Iterator[Case]:
    for kind, name in KERAS_MODELS.items():
        expected = named_output(pickle.loads((folder / f"{name}.expected").read_bytes()))
        predictor = KerasPredictor(folder / f"{name}.keras")
        yield Case(kind, "function", predictor, keras_models.features_of(name), expected)


def load_softmax() -> Callable[[Any], Any]:
    weights = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)

    def softmax(x: Any) -> Any:
        scores = np.exp(x @ weights)
        return scores / scores.sum(axis=1, keepdims=True)

    return softmax


def function_case() -> Case:
    rows = np.random.default_rng(2).normal(size=(70, 5)).astype(np.float32)
    predictor = FunctionPredictor(load_softmax, row_wise=True, signature=("float32", (5,)))
    return Case(FUNCTION, "function", predictor, rows, named_output(load_softmax()(rows)))


def cases(folder: Path) -> Iterator[Case]:
    """Make the models that this environment can make, and yield all that it can be asked."""
    yield function_case()
    if needs.TENSORFLOW is None:
        return
    if needs.HAS_ESTIMATORS:
        names = sorted({*ESTIMATORS.values(), *EXPORTED.values()})
        program("tests.exported", "write", str(folder), *names)
    for made in ("keras", "saved"):
        (folder / "made" / made).mkdir(parents=True)
        program(f"tests.{made}_models", str(folder / "made" / made))
    yield from estimator_cases(folder)
    yield from exported_cases(exported_folder(folder))
    yield from saved_cases(folder / "made" / "saved")
    yield from keras_cases(folder / "made" / "keras")


def exported_folder(folder: Path) -> Path:
    return folder if needs.HAS_ESTIMATORS else Path(os.environ["PREDICTPOOL_EXPORTED"])


def program(*arguments: str) -> None:
    """Run what imports TensorFlow: an application never does."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


# --- measure -----------------------------------------------------------------------


async def line(case: Case) -> Line:
    """Ask one model in a pool."""
    warmup = rows_of(case.features, slice(2))
    found = partial(Line, case.kind, tensorflow_version(), case.method)
    pool: PredictorPool[Any] = PredictorPool(case.predictor, workers=1, warmup=warmup)
    try:
        await pool.open()
    except WorkerStartError as error:
        if "predictpool export" in str(error):
            return found("no: `predictpool export`")
        raise
    try:
        differences = [await difference(pool, case, slice(size)) for size in SIZES]
        (worker,) = pool.workers()
        return found("yes", max(differences), await p50(pool, case), worker.load_seconds)
    finally:
        await pool.aclose()


async def difference(pool: PredictorPool[Any], case: Case, rows: slice) -> float:
    """Return the largest difference between floats; whatever else is not equal is an error."""
    outputs = named_output(await pool.predict(rows_of(case.features, rows)))
    assert set(outputs) == set(case.expected)
    largest = 0.0
    for name, values in rows_of(case.expected, rows).items():
        assert (outputs[name].dtype, outputs[name].shape) == (values.dtype, values.shape)
        if values.dtype.kind == "f":
            np.testing.assert_allclose(outputs[name], values, rtol=TOLERANCE, atol=TOLERANCE)
            largest = max(largest, float(np.abs(outputs[name] - values).max()))
        else:
            np.testing.assert_array_equal(outputs[name], values)
    return largest


async def p50(pool: PredictorPool[Any], case: Case) -> float:
    one = rows_of(case.features, slice(1))
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await pool.predict(one)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def tensorflow_version() -> str:
    import importlib.metadata

    return "none" if needs.TENSORFLOW is None else importlib.metadata.version("tensorflow")


def measure(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [asdict(anyio.run(line, case)) for case in cases(Path(folder))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lines, indent=2))


# --- write -------------------------------------------------------------------------


def table(lines: list[Line]) -> str:
    """Render the lines, kinds and methods in the order of `KINDS`."""
    order = [(kind, method) for kind, methods in KINDS.items() for method in methods]
    rendered = [
        "| model | TensorFlow | method | works | max difference | p50 | load |",
        "|---|---|---|---|---|---|---|",
    ]
    versions = sorted({one.tensorflow for one in lines})
    for one in sorted(
        lines,
        key=lambda one: (order.index((one.kind, one.method)), versions.index(one.tensorflow)),
    ):
        figures = [
            "" if one.max_difference is None else f"{one.max_difference:.1g}",
            "" if one.p50_seconds is None else f"{one.p50_seconds * 1e3:.2f} ms",
            "" if one.load_seconds is None else f"{one.load_seconds:.2f} s",
        ]
        said = (one.kind, one.tensorflow, one.method, one.works, *figures)
        rendered.append(f"| {' | '.join(said)} |")
    return "\n".join(rendered)


def write(paths: list[Path]) -> None:
    """Put the table between its two marks on the page."""
    lines = [Line(**found) for path in paths for found in json.loads(path.read_text())]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n\n{END}{after}")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "measure":
        measure(Path(arguments[0]))
    else:
        write([Path(argument) for argument in arguments])
