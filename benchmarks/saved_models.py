"""A SavedModel in a session against the same one as a function.

``SavedModelPredictor`` takes a session where it can; this measures what that is worth. Two models:
the Census Estimator of the other benchmarks, exported, and a small Keras model. Only TensorFlow up
to 2.15 can export the Estimator, and newer ones can run what it has kept in ``--model-dir``.
"""

import asyncio
import contextlib
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import harness
from benchmarks.figures import Spread, percentile, ratios
from benchmarks.models import Arrays
from predictpool import Device, PredictorPool, SavedModelPredictor, _census
from predictpool._features._signature import Signature
from predictpool.predictors._saved_model import Method
from predictpool.predictors._saved_model_models import Session

METHODS: tuple[Method, ...] = ("session", "function")
WARM_UP = 100


@dataclass(frozen=True)
class Size:
    """How much is measured: calls in a round, and rounds."""

    calls: int = 1_000
    rounds: int = 7


@dataclass(frozen=True)
class Line:
    """What was measured of one model, one way.

    Attributes:
        model: which.
        where: in this process, or in a pool.
        method: of the predictor.
        p50_seconds: of one row.
        ratio: to the session, round by round.
        load_seconds: how long loading took, once; in a pool with the warm-up.
    """

    model: str
    where: str
    method: Method
    p50_seconds: Spread
    ratio: Spread
    load_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    size: Size
    lines: list[Line]


def run(folder: Path | None, *, quick: bool, note: Callable[[str], None]) -> Outcome:
    """Measure both models.

    Args:
        folder: where the exported Estimator is, or will be kept.
    """
    size = Size(20, 2) if quick else Size()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as temporary:
        estimator, keras = (folder or Path(temporary, "estimator")), Path(temporary, "keras")
        note("exporting the models")
        if not estimator.exists():
            harness.in_child(export_estimator, estimator, 20 if quick else _census.TRAINING_STEPS)
        harness.in_child(export_keras, keras)
        for name, path, rows in (
            ("Census Estimator, 13 features", estimator, estimator_rows()),
            ("Keras, three dense layers", keras, keras_rows()),
        ):
            note(name)
            lines += measure(name, path, rows, size)
    return Outcome(size, lines)


def measure(name: str, folder: Path, rows: Arrays, size: Size) -> list[Line]:
    """Measure one model, each way, in rounds that take turns."""
    ways = [(where, method) for where in SERVES for method in METHODS]
    contenders: dict[tuple[str, Method], harness.Contender] = {}
    with harness.all_ended(contenders.values()):
        loads = {}
        for where, method in ways:  # one after the other, each without neighbours
            contender = harness.Contender(where, SERVES[where], folder, rows, method)
            contenders[where, method] = contender
            loads[where, method] = contender.result()
        rounds = [
            {way: contender.order(size.calls) for way, contender in contenders.items()}
            for _ in range(size.rounds)
        ]
    p50 = {way: [found[way] for found in rounds] for way in ways}
    return [
        Line(
            name,
            where,
            method,
            Spread.of(p50[where, method]),
            ratios(p50[where, method], p50[where, "session"]),
            loads[where, method],
        )
        for where, method in ways
    ]


class AsFunction(SavedModelPredictor):
    """Runs every model as a function."""

    def load(self, device: Device) -> None:
        """Load the model, as if a session did not hold all that it needs."""
        with mock.patch.object(Session, "holds", return_value=False):
            super().load(device)


def predictor(folder: Path, method: Method) -> SavedModelPredictor:
    """Return what loads the model in that way."""
    return SavedModelPredictor(folder) if method == "session" else AsFunction(folder)


# --- the contenders ----------------------------------------------------------------


def serve_in_process(orders: harness.Orders, folder: Path, rows: Arrays, method: Method) -> None:
    """Call the model in this process, pinned like a worker."""
    harness.become_like_a_worker()
    importlib.import_module("tensorflow")  # which the template of a pool has done already
    loaded = predictor(folder, method)
    began = time.perf_counter()
    loaded.load(Device())
    loading = time.perf_counter() - began
    assert loaded.method == method
    assert isinstance(loaded.signature, Signature)
    requests = cycle([loaded.signature.conform(row) for row in one_by_one(rows)])
    timed(loaded.predict, islice(requests, WARM_UP))
    orders.reply(loading)
    while order := orders.next():
        orders.reply(timed(loaded.predict, islice(requests, *order)))


def serve_pool(orders: harness.Orders, folder: Path, rows: Arrays, method: Method) -> None:
    """Ask a pool with one worker."""
    asyncio.run(_serve_pool(orders, folder, one_by_one(rows), method))


async def _serve_pool(
    orders: harness.Orders, folder: Path, rows: list[Arrays], method: Method
) -> None:
    requests = cycle(rows)
    async with PredictorPool(predictor(folder, method), workers=1) as pool:
        for row in islice(requests, WARM_UP):
            await pool.predict(row)
        (worker,) = pool.workers()
        orders.reply(worker.load_seconds)
        while order := orders.next():
            seconds = []
            for row in islice(requests, *order):
                began = time.perf_counter()
                await pool.predict(row)
                seconds.append(time.perf_counter() - began)
            orders.reply(percentile(seconds, 50))


SERVES = {"in process": serve_in_process, "pool, asyncio, 1 worker": serve_pool}


def timed(function: Callable[[Any], object], requests: Iterator[Any]) -> float:
    """Return the median of the seconds that a call takes."""
    seconds = []
    for request in requests:
        began = time.perf_counter()
        function(request)
        seconds.append(time.perf_counter() - began)
    return percentile(seconds, 50)


def one_by_one(rows: Arrays) -> list[Arrays]:
    """Return rows as requests of one row."""
    count = len(next(iter(rows.values())))
    return [{name: values[row : row + 1] for name, values in rows.items()} for row in range(count)]


# --- the models --------------------------------------------------------------------


def export_keras(folder: Path) -> None:
    """Write three dense layers; the weights do not matter."""
    _census.silence()
    import tensorflow as tf

    inputs = tf.keras.Input((16,), name="x")
    hidden = inputs
    for width in (64, 32):
        hidden = tf.keras.layers.Dense(width, activation="relu")(hidden)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(2)(hidden))
    with contextlib.redirect_stdout(sys.stderr):  # it has much to say
        model.export(str(folder))


def export_estimator(folder: Path, steps: int) -> None:
    """Train the Census Estimator and export it."""
    _census.silence()
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as trained:
        _census.train(Path(trained), steps)
        rows, _ = _census.read_rows("held-out")

        def receiver() -> Any:
            inputs = {
                name: tf.compat.v1.placeholder(
                    tf.string if values.dtype == object else values.dtype, [None], name
                )
                for name, values in rows.items()
            }
            return tf.estimator.export.ServingInputReceiver(inputs, inputs)

        _census.build_estimator(trained).export_saved_model(str(folder), receiver)


def keras_rows() -> Arrays:
    """Return 256 rows for the Keras model."""
    return {"x": np.random.default_rng(1).normal(size=(256, 16)).astype(np.float32)}


def estimator_rows() -> Arrays:
    """Return 256 rows for the Estimator."""
    rows, _ = _census.read_rows("held-out")
    return {name: values[:256] for name, values in rows.items()}
