"""The demo: one Estimator, asked for the same held-out rows in five ways, every answer checked.

`run` trains and measures and returns a `DemoResult`; `table` renders one and `shown` shows the
progress of a run. The command line is in ``_cli``.
"""

import contextlib
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import anyio
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from predictpool import Device, EstimatorPredictor, PredictorPool, Signature, _census
from predictpool._command import CommandError

Arrays = dict[str, NDArray[Any]]
Method = Literal["generator", "session"]
Build = Callable[[], Any]
Report = Callable[[str, int, int], None]
"""Called with what is going on, how many steps of it are done, and how many there are."""

METHODS: tuple[Method, ...] = ("generator", "session")
CALLERS = 64
ROUNDS = 5  # of all rows by all callers: one alone is too short to time
NAIVE_CALLS = 5
TOLERANCE = 2e-5  # relative and absolute: kernels differ with the number of rows
MARKER = "predictpool-demo"


@dataclass(frozen=True)
class Way:
    """One way to ask the model, and what came of it.

    Attributes:
        name: what the table calls it.
        p50_seconds: median latency of one row, one caller.
        rows_per_second: with ``callers`` concurrent callers of one row each.
        callers: 1 in process, where calls can only follow each other.
        accuracy: which part of the held-out rows was classified correctly, 0.0 to 1.0.
        answers: how many answers were found equal to those of ``estimator.predict``.
    """

    name: str
    p50_seconds: float
    rows_per_second: float
    callers: int
    accuracy: float
    answers: int


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demo found.

    Attributes:
        tensorflow: its version.
        steps: training steps asked for.
        training_seconds: what they took; next to nothing if the model was there already.
        rows: how many held-out rows were predicted.
        workers: processes in each pool.
        ways: the lines of the table.
    """

    tensorflow: str
    steps: int
    training_seconds: float
    rows: int
    workers: int
    ways: tuple[Way, ...]

    def to_json(self) -> str:
        """Return one JSON object that has these attributes."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class HeldOut:
    """The rows to ask for, one mapping each, and what to hold the answers against.

    Attributes:
        rows: name → array of shape ``(1,)``.
        labels: int64, shape ``(rows,)``.
        expected: what ``estimator.predict`` says to all rows at once; first axis = rows.
    """

    rows: list[Arrays]
    labels: NDArray[np.int64]
    expected: Arrays

    def accuracy(self, class_ids: NDArray[Any]) -> float:
        """Return which part of ``class_ids``, shape ``(n × rows, 1)``, is right."""
        return float(np.mean(class_ids[:, 0] == np.resize(self.labels, len(class_ids))))


def run(
    *, rows: int, workers: int, steps: int, model_dir: Path | None, report: Report
) -> DemoResult:
    """Train, then ask for the first ``rows`` held-out rows in every way.

    Args:
        rows: how many, 1 to 2,000.
        workers: processes in each pool.
        steps: training steps.
        model_dir: where the model is kept; None means a temporary directory.
        report: told about the progress.

    Raises:
        CommandError: an answer differs from that of ``estimator.predict``, there are no
            Estimators, or ``model_dir`` holds something else.
    """
    version = require_estimators()
    with contextlib.ExitStack() as stack:
        if model_dir is None:
            model_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=MARKER)))
        claim(model_dir)
        estimator, training_seconds = train(model_dir, steps, report)
        held_out = prepare(estimator, rows)
        build = functools.partial(_census.build_estimator_quietly, model_dir)
        ways = [
            ask_naively(estimator, held_out, report),
            *(ask_in_process(build, method, held_out, report) for method in METHODS),
            *(anyio.run(ask_pool, build, method, workers, held_out, report) for method in METHODS),
        ]
    return DemoResult(version, steps, training_seconds, rows, workers, tuple(ways))


def train(model_dir: Path, steps: int, report: Report) -> tuple[Any, float]:
    """Return the trained estimator and the seconds that it took."""
    phase = "Training the model"
    report(phase, 0, steps)
    started = time.perf_counter()
    estimator = _census.train(model_dir, steps, lambda done: report(phase, done, steps))
    seconds = time.perf_counter() - started
    report(phase, steps, steps)  # a model that was there already makes no steps
    return estimator, seconds


def require_estimators() -> str:
    """Import TensorFlow and return its version, or raise `CommandError` if it has no Estimators."""
    _census.silence()
    try:
        import tensorflow as tf

        tf.estimator.DNNLinearCombinedClassifier  # noqa: B018 - loaded lazily
    except (ImportError, AttributeError) as error:
        raise CommandError(
            f"the demo needs TensorFlow 2.12 to 2.15, the last with Estimators ({error}): "
            'on Python 3.11, pip install "predictpool[estimator]"',
            exit_code=2,
        ) from error
    return str(tf.__version__)


def claim(model_dir: Path) -> None:
    """Make ``model_dir`` the demo's, or raise `CommandError` if it holds something else."""
    marker = model_dir / MARKER
    if not marker.exists() and model_dir.exists() and any(model_dir.iterdir()):
        raise CommandError(
            f"--model-dir {model_dir} is not empty and holds no model of this demo: "
            "name a new or an empty directory",
            exit_code=2,
        )
    model_dir.mkdir(parents=True, exist_ok=True)
    marker.touch()


def prepare(estimator: Any, count: int) -> HeldOut:
    """Read the first ``count`` held-out rows and let ``estimator.predict`` answer them."""
    features, labels = _census.read_rows("held-out")
    features = {name: values[:count] for name, values in features.items()}
    rows = [
        {name: values[row : row + 1] for name, values in features.items()} for row in range(count)
    ]
    return HeldOut(rows, labels[:count], predict_naively(estimator, features))


def predict_naively(estimator: Any, features: Arrays) -> Arrays:
    """Ask ``estimator.predict``, which builds its graph and restores its checkpoint for it."""
    import tensorflow as tf

    def batches() -> Any:
        return tf.data.Dataset.from_tensors(features)

    (answer,) = estimator.predict(batches, yield_single_examples=False)
    return dict(answer)


def ask_naively(estimator: Any, held_out: HeldOut, report: Report) -> Way:
    """Call ``estimator.predict`` once for each of a few rows; the accuracy is that of all rows."""
    name, rows = "estimator.predict for each request", held_out.rows[:NAIVE_CALLS]
    predict = functools.partial(predict_naively, estimator)
    way = sum_up(name, held_out, *ask_in_turn(name, predict, rows, report))
    return replace(way, accuracy=held_out.accuracy(held_out.expected["class_ids"]))


def ask_in_process(build: Build, method: Method, held_out: HeldOut, report: Report) -> Way:
    """Use the library's predictor without a pool, in this thread, on features checked before."""
    name = f"cached in process, {method}"
    predictor = EstimatorPredictor(build, method=method)
    predictor.load(Device())
    try:
        signature = predictor.signature
        assert isinstance(signature, Signature)  # derived from the model's feature columns
        rows = [signature.conform(row) for row in held_out.rows]
        predictor.predict(rows[0])  # the first call builds what the others use
        answers, latencies = ask_in_turn(name, predictor.predict, rows, report)
    finally:
        predictor.close()
    return sum_up(name, held_out, answers, latencies)


def ask_in_turn(
    name: str, predict: Callable[[Arrays], Arrays], rows: Sequence[Arrays], report: Report
) -> tuple[list[Arrays], list[float]]:
    """Return the answers to ``rows`` and how many seconds each one took."""
    answers: list[Arrays] = []
    latencies: list[float] = []
    for row in rows:
        report(f"Asking: {name}", len(answers), len(rows))
        started = time.perf_counter()
        answers.append(predict(row))
        latencies.append(time.perf_counter() - started)
    report(f"Asking: {name}", len(rows), len(rows))
    return answers, latencies


async def ask_pool(
    build: Build, method: Method, workers: int, held_out: HeldOut, report: Report
) -> Way:
    """Start a pool; ask it for the rows one at a time, then with many callers at once."""
    name, rows = f"pool, {method}", held_out.rows
    report(f"Starting: {name}", 0, workers)
    async with PredictorPool(EstimatorPredictor(build, method=method), workers=workers) as pool:
        for ready in range(1, workers + 1):
            await pool.wait_ready(ready)
            report(f"Starting: {name}", ready, workers)

        answers: list[Arrays] = []
        latencies: list[float] = []
        for row in rows:
            report(f"Asking: {name}, 1 caller", len(answers), len(rows))
            started = time.perf_counter()
            answers.append(await pool.predict(row))
            latencies.append(time.perf_counter() - started)
        report(f"Asking: {name}, 1 caller", len(rows), len(rows))

        report(f"Asking: {name}, {CALLERS} callers", 0, 1)
        started = time.perf_counter()
        answers += await ask_concurrently(pool, rows * ROUNDS)
        seconds = time.perf_counter() - started
        report(f"Asking: {name}, {CALLERS} callers", 1, 1)
    way = sum_up(name, held_out, answers, latencies)
    return replace(way, callers=CALLERS, rows_per_second=ROUNDS * len(rows) / seconds)


async def ask_concurrently(pool: PredictorPool[Arrays], rows: Sequence[Arrays]) -> list[Arrays]:
    """Let `CALLERS` callers take one row after another until all are answered."""
    numbered = iter(enumerate(rows))
    answers: dict[int, Arrays] = {}

    async def call() -> None:
        for number, row in numbered:
            answers[number] = await pool.predict(row)

    async with anyio.create_task_group() as group:
        for _ in range(CALLERS):
            group.start_soon(call)
    return [answers[number] for number in range(len(rows))]


def sum_up(
    name: str, held_out: HeldOut, answers: Sequence[Arrays], latencies: Sequence[float]
) -> Way:
    """Check the answers; say how fast those to one caller were and how many classes were right."""
    check(name, answers, held_out.expected)
    return Way(
        name=name,
        p50_seconds=statistics.median(latencies),
        rows_per_second=len(latencies) / sum(latencies),
        callers=1,
        accuracy=held_out.accuracy(np.concatenate([answer["class_ids"] for answer in answers])),
        answers=len(answers),
    )


def check(name: str, answers: Sequence[Arrays], expected: Arrays) -> None:
    """Raise `CommandError` unless all ``answers`` are what ``estimator.predict`` says.

    The answers are those to the rows of ``expected`` in their order, and again from the first after
    the last. They need the same outputs, dtypes and shapes, floats within `TOLERANCE`, and
    everything else equal, but that a row whose probabilities tie within it may fall into either
    class.
    """
    count = len(expected["probabilities"])
    row_of = np.arange(len(answers)) % count
    form = {output: (values.dtype, values[:1].shape) for output, values in expected.items()}
    for row, answer in zip(row_of, answers, strict=True):
        given_form = {output: (values.dtype, values.shape) for output, values in answer.items()}
        if given_form != form:
            raise wrong_answer(name, row, "outputs, dtypes and shapes", given_form, form)

    tied = np.ptp(expected["probabilities"], axis=1, keepdims=True) <= 4 * TOLERANCE
    for output, values in expected.items():
        given = np.concatenate([answer[output] for answer in answers])
        wanted = values[row_of]
        if np.issubdtype(values.dtype, np.floating):
            differs = ~np.isclose(given, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            differs = given != wanted
        if output in ("class_ids", "classes"):
            differs &= ~tied[row_of]
        if differs.any():
            number = int(np.argwhere(differs)[0, 0])
            raise wrong_answer(name, row_of[number], output, given[number], wanted[number])


def wrong_answer(name: str, row: int, what: str, given: object, wanted: object) -> CommandError:
    """Return the error that says what differs; it must never be seen, so it asks for a report."""
    return CommandError(
        f"{name} answered held-out row {row} with another {what!r} than estimator.predict: "
        f"given {given}, expected {wanted}. This is a bug in predictpool; please report it",
        exit_code=1,
    )


def table(result: DemoResult) -> Table:
    """Render the result for people."""
    rendered = Table(
        title=f"Wide-and-deep classifier, {result.rows:,} held-out census rows\n"
        f"TensorFlow {result.tensorflow}, workers in each pool: {result.workers}",
        caption=f"All {sum(way.answers for way in result.ways):,} answers equal those of "
        f"estimator.predict (floats within {TOLERANCE:g}).",
    )
    rendered.add_column("way to predict")
    for heading in ("p50, ms", "callers", "rows/s", "accuracy"):
        rendered.add_column(heading, justify="right")
    for way in result.ways:
        rendered.add_row(
            way.name,
            f"{way.p50_seconds * 1e3:,.2f}",
            f"{way.callers}",
            f"{way.rows_per_second:,.{0 if way.rows_per_second >= 10 else 1}f}",
            f"{way.accuracy:.3f}",
        )
    return rendered


@contextlib.contextmanager
def shown() -> Iterator[Report]:
    """Yield a `Report` that draws progress bars on stderr."""
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    bars: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        if not bars:
            progress.start()  # not before: without a bar it would leave an empty line
        if phase not in bars:
            bars[phase] = progress.add_task(phase, total=total)
        progress.update(bars[phase], completed=done)

    try:
        yield report
    finally:
        if bars:
            progress.stop()
