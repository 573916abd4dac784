"""The bench: how fast one predictor answers, with how many workers, in batches of which size.

`run` measures and returns a `BenchResult`; `table` renders one, `shown` the progress, and `plot`
draws. Every mistake of the user's is a `CommandError` of one line. The command line is in ``_cli``.

Callers ask again as soon as they are answered, for some rounds of equal length after each other,
of which the first is thrown away. What is reported is the median of the rounds, with the lowest
and the highest.
"""

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from predictpool import Predictor, PredictorPool, WorkerStartError
from predictpool._check import example, find_predictor, opened, predict, rows_of, start_failure
from predictpool._command import CommandError
from predictpool._devices import available_cores

BATCHES: Final = (1, 8, 64)  # requests that fit in a batch
ROUNDS: Final = 3
ENOUGH: Final = 0.9  # of the highest throughput: what more workers or larger batches are not worth
BUSY: Final = 0.9  # of a core, from where on the application itself is the limit
UNSTEADY: Final = 1.2  # highest to lowest round
PLOTS: Final = (".png", ".svg")

Report = Callable[[str, int, int], None]
"""Called with what is going on, how many measurements are done, and how many there are."""


@dataclass(frozen=True)
class Measurement:
    """Options of a pool, and what callers got from it in equal spans of time.

    Attributes:
        workers: processes in the pool.
        max_batch_size: rows that fit in a batch.
        requests_per_second: the median of the rounds.
        lowest: requests/s of the slowest round.
        highest: requests/s of the fastest round.
        p50_seconds: median latency of all answers.
        p99_seconds: what 99 % of all answers did not exceed.
        answers: how many there were.
        rows_per_call: rows in one call of the model, on average.
        application: which part of a core this process needed, 0.0 to 1.0.
    """

    workers: int
    max_batch_size: int
    requests_per_second: float
    lowest: float
    highest: float
    p50_seconds: float
    p99_seconds: float
    answers: int
    rows_per_call: float
    application: float


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        target: the predictor, ``MODULE:PREDICTOR``.
        own_rows: whether the user has named features; else it was asked for zeros and empty text.
        rows: in each request.
        row_wise: whether requests can share a call of the model.
        callers: that asked at the same time.
        seconds: that each round took.
        cores: that this process and the workers may use.
        alone: one caller, and one worker.
        loaded: with all callers.
    """

    target: str
    own_rows: bool
    rows: int
    row_wise: bool
    callers: int
    seconds: float
    cores: int
    alone: Measurement
    loaded: tuple[Measurement, ...]

    def to_json(self) -> str:
        """Return one JSON object that has these attributes, and what follows from them."""
        best = {"workers": self.best.workers, "max_batch_size": self.best.max_batch_size}
        words = {"recommendation": recommendation(self), "cautions": list(cautions(self))}
        return json.dumps({**asdict(self), "best": best, **words}, indent=2)

    @property
    def most(self) -> Measurement:
        """The highest throughput."""
        return max(self.loaded, key=lambda each: each.requests_per_second)

    @property
    def best(self) -> Measurement:
        """What is nearly as fast, with the fewest workers, and then with the shortest p99."""
        least = ENOUGH * self.most.requests_per_second
        enough = [each for each in self.loaded if each.requests_per_second >= least]
        return min(enough, key=lambda each: (each.workers, each.p99_seconds))


def run(
    target: str,
    *,
    features: str | None,
    workers: Sequence[int],
    callers: int,
    seconds: float,
    plot_file: Path | None,
    start_timeout: float,
    report: Report,
) -> BenchResult:
    """Measure a predictor.

    Args:
        target: ``MODULE:PREDICTOR``.
        features: ``MODULE:FEATURES``, what each request asks for; None for one row of zeros and
            empty text, where the signature is known.
        workers: how many to try; empty for 1, 2, 4 and so on up to one for each core.
        callers: that ask at the same time.
        seconds: that each round takes.
        plot_file: what to draw it in; None for no drawing.
        start_timeout: seconds that each worker may take to start.
        report: told about the progress.

    Raises:
        CommandError: any mistake of the user's, a predictor that does not work.
    """
    if plot_file is not None:
        require_plot(plot_file)
    predictor, given = find_predictor(target, features)
    bench = Bench(
        target, predictor, given, callers=callers, seconds=seconds, workers=workers, report=report
    )
    result = anyio.run(bench.run, start_timeout)
    if plot_file is not None:
        plot(result, plot_file)
    return result


def up_to(cores: int) -> set[int]:
    """Return 1, 2, 4 and so on, and the number of cores."""
    return {2**power for power in range(cores.bit_length())} | {cores}


# --- measuring ----------------------------------------------------------------------


class Bench:
    """One run.

    Args:
        target, callers, seconds, workers, report: as of `run`.
        predictor: what that names.
        given: features; None for zeros and empty text.
    """

    def __init__(
        self,
        target: str,
        predictor: Predictor[Any],
        given: Any,
        *,
        callers: int,
        seconds: float,
        workers: Sequence[int],
        report: Report,
    ) -> None:
        self._target = target
        self._predictor = predictor
        self._given = given
        self._callers = callers
        self._seconds = seconds
        self._cores = len(available_cores())
        self._workers = sorted({*workers} or up_to(self._cores))
        self._report = report
        self._done = 0
        self._row_wise = True
        self._features: Any
        self._alone: Measurement

    async def run(self, start_timeout: float) -> BenchResult:
        """Measure one caller alone, then all of them with each setting."""
        loaded: list[Measurement] = []
        rows = 1
        for batch in BATCHES:
            self._report("Starting workers", self._done, self._total)
            # On cores: workers that shared a GPU would say nothing about how many there should be.
            options = {
                "devices": "cpu",
                "max_batch_size": batch * rows,
                "max_waiting": None,
                "timeout": None,
            }
            pool = await opened(self._predictor, self._given, start_timeout, **options)
            try:
                if batch == 1:
                    rows = await self._begin(pool)
                loaded += await self._each(pool, batch * rows)
            finally:
                await pool.aclose()
            if not self._row_wise:
                break  # each request is a batch of its own, whatever the pool is told
        return BenchResult(
            target=self._target,
            own_rows=self._given is not None,
            rows=rows,
            row_wise=self._row_wise,
            callers=self._callers,
            seconds=self._seconds,
            cores=self._cores,
            alone=self._alone,
            loaded=tuple(loaded),
        )

    @property
    def _total(self) -> int:
        return 1 + len(self._workers) * (len(BATCHES) if self._row_wise else 1)

    async def _begin(self, pool: PredictorPool[Any]) -> int:
        """Measure one caller alone, and return how many rows are in each request."""
        self._features = example(pool.signature) if self._given is None else self._given
        if self._features is None:
            raise CommandError(
                f"nobody knows what {self._target} takes: declare its signature=, or name features "
                "that it can take: --features MODULE:FEATURES",
                exit_code=2,
            )
        await predict(pool, self._features)
        self._row_wise = all(worker.row_wise for worker in pool.workers())
        rows = rows_of(self._features)
        self._alone = await self._measure(pool, "1 caller alone", 1, (1, rows))
        return rows

    async def _each(self, pool: PredictorPool[Any], max_batch_size: int) -> list[Measurement]:
        """Measure with each number of workers."""
        measured = []
        for workers in self._workers:
            try:
                await pool.resize(workers)
            except WorkerStartError as error:
                raise start_failure(error, self._given is None) from error
            setting = pool.statistics().workers, max_batch_size
            what = named(*setting, self._row_wise)
            measured.append(await self._measure(pool, what, self._callers, setting))
        return measured

    async def _measure(
        self, pool: PredictorPool[Any], what: str, callers: int, setting: tuple[int, int]
    ) -> Measurement:
        """Have callers ask again and again, and look at the clock now and then."""
        self._report(what, self._done, self._total)
        answers: list[tuple[float, float]] = []  # when it came, how long it took
        failure: list[CommandError] = []

        async def call() -> None:
            try:
                while True:
                    began = time.perf_counter()
                    await predict(pool, self._features)
                    ended = time.perf_counter()
                    answers.append((ended, ended - began))
                    answered.set()
            except CommandError as error:
                failure.append(error)
                asking.cancel_scope.cancel()

        marks: list[Mark] = []
        answered = anyio.Event()
        async with anyio.create_task_group() as asking:
            for _ in range(callers):
                asking.start_soon(call)
            for _ in range(1 + ROUNDS):  # the first round is the warm-up
                answered = anyio.Event()
                await anyio.sleep(self._seconds)
                await answered.wait()  # where one call of the model takes longer than a round
                marks.append(Mark.now(pool))
            asking.cancel_scope.cancel()
        if failure:
            raise failure[0]
        self._done += 1
        self._report(what, self._done, self._total)
        return measurement_of(answers, marks, setting)


@dataclass(frozen=True)
class Mark:
    """What the clocks said at the end of a round."""

    at: float
    process_time: float
    rows: int
    batches: int

    @classmethod
    def now(cls, pool: PredictorPool[Any]) -> "Mark":
        """Look at the clocks."""
        so_far = pool.statistics()
        return cls(time.perf_counter(), time.process_time(), so_far.rows, so_far.batches)


def measurement_of(
    answers: list[tuple[float, float]], marks: Sequence[Mark], setting: tuple[int, int]
) -> Measurement:
    """Return what callers got between the marks; at least one answer in each round."""
    rounds = [
        [took for ended, took in answers if start.at < ended <= stop.at]
        for start, stop in itertools.pairwise(marks)
    ]
    rates = [
        len(each) / (stop.at - start.at)
        for each, (start, stop) in zip(rounds, itertools.pairwise(marks), strict=True)
    ]
    latencies = sorted(itertools.chain.from_iterable(rounds))
    first, last = marks[0], marks[-1]
    return Measurement(
        *setting,
        requests_per_second=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        p50_seconds=statistics.median(latencies),
        p99_seconds=latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        answers=len(latencies),
        rows_per_call=(last.rows - first.rows) / max(1, last.batches - first.batches),
        application=(last.process_time - first.process_time) / (last.at - first.at),
    )


# --- what it means ------------------------------------------------------------------


def named(workers: int, max_batch_size: int, row_wise: bool) -> str:
    """Return a setting as the pool's options."""
    return f"workers={workers}" + (f", max_batch_size={max_batch_size}" if row_wise else "")


def recommendation(result: BenchResult) -> str:
    """Return which options to take, and why, in one sentence."""
    best, most = result.best, result.most
    options = named(best.workers, best.max_batch_size, result.row_wise)
    rate = f"{rounded(best.requests_per_second)} requests/s"
    if best == most:
        return f"Take {options}: {rate}, the most that was measured."
    other = named(most.workers, most.max_batch_size, result.row_wise)
    why = "fewer workers" if best.workers < most.workers else "a shorter p99"
    return (
        f"Take {options}: {rate}, within 10 % of the most ({rounded(most.requests_per_second)} "
        f"with {other}), with {why}."
    )


def cautions(result: BenchResult) -> Iterator[str]:
    """Yield what the numbers do not say."""
    measured = (result.alone, *result.loaded)
    apart = max(each.highest / each.lowest for each in measured)
    if apart > UNSTEADY:
        yield (
            f"Rounds of one setting differ by up to {apart - 1:.0%}: something else is busy on "
            "this machine, or rounds are too short (--seconds). Take the numbers as rough ones."
        )
    if result.most.application >= BUSY:
        yield (
            "This process itself was busy nearly all the time: more workers would not answer more. "
            "Larger requests, or several processes with a pool each, would."
        )
    fewest = min(each.answers for each in measured)
    if fewest < 100:
        yield f"A p99 of {fewest} answers is the slowest of them; --seconds gives it more."
    if not result.own_rows:
        yield "It was asked for zeros and empty text; --features names rows like the real ones."
    if not result.row_wise:
        yield (
            "The predictor is not row-wise, so each request is a call of its own and "
            "max_batch_size has no effect."
        )
    yield (
        "All callers were in this process, on the workers' cores, and asked for the same again at "
        "once: how requests come to a real application, and what it does besides, is not in here."
    )


# --- words and pictures -------------------------------------------------------------


def table(result: BenchResult) -> Group:
    """Render the result for people."""
    rendered = Table(
        title=title_of(result),
        caption=f"{ROUNDS} rounds of {result.seconds:g} s. One caller alone: "
        f"p50 {milliseconds(result.alone.p50_seconds)} ms, "
        f"p99 {milliseconds(result.alone.p99_seconds)} ms.",
        box=SIMPLE,  # so that it fits a terminal of 80 columns
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("workers", "max_batch\n_size", "requests\n/s", "spread", "p50\nms"):
        rendered.add_column(heading, justify="right")
    for heading in ("p99\nms", "rows\n/call", "this\nprocess"):
        rendered.add_column(heading, justify="right")
    for each in result.loaded:
        rendered.add_row(
            str(each.workers),
            str(each.max_batch_size) if result.row_wise else "",
            rounded(each.requests_per_second),
            f"{(each.highest - each.lowest) / each.requests_per_second:.0%}",
            milliseconds(each.p50_seconds),
            milliseconds(each.p99_seconds),
            f"{each.rows_per_call:.1f}",
            f"{each.application:.0%}",
            style="bold" if each == result.best else None,
        )
    said = Text(recommendation(result), "bold")
    return Group(rendered, said, *(escape(f"- {caution}") for caution in cautions(result)))


def title_of(result: BenchResult) -> str:
    """Return what was measured, in one line."""
    rows = "1 row" if result.rows == 1 else f"{result.rows} rows"
    cores = "1 core" if result.cores == 1 else f"{result.cores} cores"
    return f"{result.target}, {rows} in each request, {result.callers} callers on {cores}"


def rounded(rate: float) -> str:
    """Return a rate with no more digits than it deserves."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return f"{seconds * 1e3:,.2f}"


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Report]:
    """Yield a `Report` that draws a progress bar."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
    )
    hidden = not console.is_interactive  # in a file a bar would be an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("Importing", total=1)

        def report(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield report


def require_plot(path: Path) -> None:
    """Raise `CommandError` where nothing can be drawn."""
    if path.suffix.lower() not in PLOTS:
        raise CommandError(
            f"--plot {path}: expected a name that ends with {' or '.join(PLOTS)}", exit_code=2
        )
    if not path.parent.is_dir():
        raise CommandError(f"--plot {path}: there is no folder {path.parent}", exit_code=2)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise CommandError(
            '--plot needs matplotlib: pip install "predictpool[bench]"', exit_code=2
        ) from error


def plot(result: BenchResult, path: Path) -> None:
    """Draw throughput and p99 over the number of workers, one line for each batch size."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for size in sorted({each.max_batch_size for each in result.loaded}):
        line = [each for each in result.loaded if each.max_batch_size == size]
        label = f"max_batch_size={size}" if result.row_wise else None
        workers = [each.workers for each in line]
        rates = [each.requests_per_second for each in line]
        below = [each.requests_per_second - each.lowest for each in line]
        above = [each.highest - each.requests_per_second for each in line]
        left.errorbar(workers, rates, yerr=[below, above], marker="o", capsize=3, label=label)
        right.plot(workers, [each.p99_seconds * 1e3 for each in line], marker="o", label=label)
    for axes, title in ((left, "requests/s: more is better"), (right, "p99, ms: less is better")):
        axes.set_title(title)
        axes.set_xlabel("workers")
        axes.set_xticks(sorted({each.workers for each in result.loaded}))
        axes.grid(alpha=0.3)
    best = {"s": 180, "facecolors": "none", "edgecolors": "black", "label": "recommended"}
    left.scatter(result.best.workers, result.best.requests_per_second, **best)
    right.scatter(result.best.workers, result.best.p99_seconds * 1e3, **best)
    left.set_ylim(bottom=0)
    left.yaxis.set_major_formatter("{x:,.0f}")
    right.set_yscale("log")  # from the fastest to the slowest it is often a hundred times
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:,g}")
    right.yaxis.set_minor_locator(NullLocator())
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title_of(result))
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise CommandError(f"--plot {path} cannot be written: {error}", exit_code=2) from error
