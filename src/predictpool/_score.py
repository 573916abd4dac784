"""Bulk scoring: the rows of a file, each with what a predictor says to it, in another file.

`run` does that and returns a `ScoreResult`; `table` renders one and `shown` the progress. Rows go
to the pool in requests of some hundred, and answers are written in the order of the rows. A row
that is refused is set aside. Every mistake of the user's is a `CommandError` of one line. The
command line is in ``_cli``, the formats are in ``_tables``, and how a run goes on that was killed
is in ``_score_journal``.
"""

import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from predictpool import (
    BrokenWorkerError,
    InvalidFeatures,
    PredictionError,
    Predictor,
    PredictorPool,
    PredictorPoolError,
    Signature,
)
from predictpool._check import example, find_predictor, opened
from predictpool._command import CommandError, describe
from predictpool._score_features import Taking
from predictpool._score_journal import Answers, Journal, Output, what_it_is_made_of
from predictpool._tables import Row, Source, by_column, format_of
from predictpool._tables import opened as opened_source
from predictpool._worker import one_line

Report = Callable[[Journal, float], None]
"""Called with what has been done so far, and which part of the input that is, 0.0 to 1.0."""


@dataclass(frozen=True)
class ScoreResult:
    """What a finished run has done.

    Attributes:
        target: the predictor, ``MODULE:PREDICTOR``.
        input: the file that was read.
        output: the file that was written.
        rows: of the input; always ``scored + refused``.
        scored: rows in the output.
        refused: rows that were set aside.
        set_aside: the file that has them, with line and reason; None if there are none.
        resumed_after: how many rows an earlier run had done; 0 if there was none.
        columns: of the output.
        unused: columns of the input that are neither features nor kept, as far as is known.
        row_wise: whether rows could share calls of the model.
        workers: processes in the pool; 0 where an earlier run had done all rows.
        restarts: how many workers were started in place of one that died.
        seconds: from the first request of this run to the last answer.
        rows_per_second: of this run.
    """

    target: str
    input: str
    output: str
    rows: int
    scored: int
    refused: int
    set_aside: str | None
    resumed_after: int
    columns: tuple[str, ...]
    unused: tuple[str, ...]
    row_wise: bool
    workers: int
    restarts: int
    seconds: float
    rows_per_second: float

    def to_json(self) -> str:
        """Return one JSON object that has these attributes."""
        return json.dumps(asdict(self), indent=2)

    @property
    def incomplete(self) -> str:
        """What is not in the output, and where it is; or ``""``."""
        if not self.refused:
            return ""
        rows = f"{self.refused:,} rows were set aside with their reasons"
        if self.refused == 1:
            rows = "1 row was set aside with its reason"
        return f"{rows}: {self.set_aside}"


def run(
    target: str,
    path: Path,
    output_path: Path,
    *,
    keep: Sequence[str],
    workers: int | None,
    request_rows: int,
    features: str | None,
    start_timeout: float,
    report: Report,
) -> ScoreResult:
    """Score a file.

    Args:
        target: ``MODULE:PREDICTOR``.
        path: of the file to read; its name tells the format.
        output_path: of the file to write, in the format that its name tells.
        keep: columns of the input that the output gets, too.
        workers: processes in the pool; None for one for each core or GPU.
        request_rows: rows in each request, and so in each call of a row-wise model.
        features: ``MODULE:FEATURES``, what to warm up with.
        start_timeout: seconds that each worker may take to start.
        report: told about the progress.

    Raises:
        CommandError: any mistake of the user's, a predictor that does not work, a run that was
            stopped. What was written until then is kept.
    """
    kinds = format_of(path, "INPUT"), format_of(output_path, "OUTPUT")
    with (
        contextlib.closing(opened_source(path, kinds[0])) as source,
        contextlib.closing(
            Output(
                output_path, kinds[1], source, tuple(keep), what_it_is_made_of(target, path, keep)
            )
        ) as output,
    ):
        scoring = Scoring(target, source, output, tuple(keep), report)
        before = output.journal.rows
        try:
            if not output.journal.finished:
                predictor, given = find_predictor(target, features)
                options = {"workers": workers, "max_batch_size": request_rows}
                anyio.run(scoring.run, predictor, given, start_timeout, options)
            output.finish()
        except KeyboardInterrupt:
            raise stopped(output) from None
        except OSError as error:
            raise CommandError(
                f"{error}: when that is mended, the same command goes on after row "
                f"{output.journal.rows:,}"
            ) from error
        return scoring.result(path, before)


def stopped(output: Output) -> CommandError:
    """Return the error for a run that Ctrl-C has ended."""
    line = "stopped before the first row was scored"
    if output.journal.rows:
        line = f"stopped after {output.journal.rows:,} rows: the same command goes on from there"
    return CommandError(line, exit_code=130)


@dataclass
class Chunk:
    """Rows that follow each other, and what became of them.

    Attributes:
        part: of the input, that has been read behind them.
        examples: rows that can be asked for, with their features.
        answers: rows and their outputs, in order.
        refused: rows and why they were.
        failure: why scoring cannot go on.
        done: set when each of them has an answer or is refused.
    """

    part: float
    examples: list[tuple[Row, Any]] = field(default_factory=list)
    answers: Answers = field(default_factory=list)
    refused: list[tuple[Row, str]] = field(default_factory=list)
    failure: Exception | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class Scoring:
    """One run.

    Args:
        target, keep, report: as of `run`.
        source: the rows.
        output: where they go.
    """

    def __init__(
        self, target: str, source: Source, output: Output, keep: tuple[str, ...], report: Report
    ) -> None:
        self._target = target
        self._source = source
        self._output = output
        self._keep = keep
        self._report = report
        self._unused: tuple[str, ...] = ()
        self._row_wise = True
        self._workers = 0
        self._restarts = 0
        self._seconds = 0.0
        self._pool: PredictorPool[Any]
        self._signature: Signature
        self._taking: Taking
        self._known: Any  # features that the model surely can take

    async def run(
        self, predictor: Predictor[Any], given: Any, start_timeout: float, options: dict[str, Any]
    ) -> None:
        """Open a pool, and have all rows in the output that are not."""
        self._pool = await opened(
            predictor, given, start_timeout, retries=1, timeout=None, grace_period=1.0, **options
        )
        try:
            if self._pool.signature is None:
                raise CommandError(
                    f"nobody knows what {self._target} takes: declare its signature=", exit_code=2
                )
            self._signature = self._pool.signature
            self._taking = Taking(self._signature, self._source, self._keep)
            self._unused = self._taking.unused
            self._source.only = self._taking.used
            self._known = example(self._signature) if given is None else given
            self._row_wise = all(worker.row_wise for worker in self._pool.workers())
            await self._score(options["max_batch_size"])
        finally:
            await self._pool.aclose()

    async def _score(self, request_rows: int) -> None:
        """Score what is left; where that does not get to the end, keep what it has got."""
        began = time.perf_counter()
        self._report(self._output.journal, 0.0)
        try:
            await self._score_rows(request_rows)
        except OSError:
            raise
        except BaseException:
            if self._output.now.rows:
                self._output.commit()
            raise
        self._seconds = time.perf_counter() - began
        now = self._pool.statistics()
        self._workers, self._restarts = now.workers, now.restarts

    async def _score_rows(self, request_rows: int) -> None:
        """Have some chunks under way at any time, and write them in their order."""
        failure: Exception | None = None
        waiting: deque[Chunk] = deque()
        most = 2 * self._pool.statistics().workers
        async with anyio.create_task_group() as asking:
            try:
                for chunk in self._chunks(request_rows):
                    asking.start_soon(self._ask_all, chunk)
                    waiting.append(chunk)
                    await anyio.lowlevel.checkpoint()  # it is asked for before the next one is read
                    if len(waiting) >= most:
                        await self._write(waiting.popleft())
                while waiting:
                    await self._write(waiting.popleft())
            except Exception as error:  # noqa: BLE001 - raised below, where it is no group
                failure = error
                asking.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _write(self, chunk: Chunk) -> None:
        await chunk.done.wait()
        if chunk.failure is not None:
            raise chunk.failure
        self._output.write(chunk.answers, chunk.refused)
        self._report(self._output.now, chunk.part)

    def _chunks(self, request_rows: int) -> Iterator[Chunk]:
        rows = self._source.rows()
        for row in itertools.islice(rows, self._output.journal.rows):
            self._taking.pass_by(row)
        while taken := list(itertools.islice(rows, request_rows)):
            chunk = Chunk(self._source.part)
            for row in taken:
                try:
                    chunk.examples.append((row, self._taking.example(row)))
                except (ValueError, OverflowError) as error:
                    chunk.refused.append((row, one_line(str(error))))
            yield chunk

    async def _ask_all(self, chunk: Chunk) -> None:
        size = len(chunk.examples) if self._row_wise else 1
        try:
            await self._ask_each(chunk, chunk.examples, size)
        except Exception as error:  # noqa: BLE001 - `_write` raises it, in its place
            chunk.failure = error
        finally:
            chunk.done.set()

    async def _ask_each(self, chunk: Chunk, examples: Sequence[Any], size: int) -> None:
        """Ask for rows, so many at a time."""
        for start in range(0, len(examples), size or 1):
            await self._ask(chunk, examples[start : start + size])

    async def _ask(self, chunk: Chunk, part: Sequence[Any]) -> None:
        """Ask for rows at once; where that fails, for less, until the guilty ones are alone."""
        features = self._taking.joined([features for _, features in part])
        try:
            outputs = await self._pool.predict(features)
        except BrokenWorkerError as error:
            # A slot is given up after several workers in a row that never answered, so the next
            # one is first asked for something that it can answer.
            with contextlib.suppress(Exception):
                await self._pool.predict(self._known)
            await self._refused(chunk, part, error, 1)
        except (InvalidFeatures, PredictionError) as error:
            await self._refused(chunk, part, error, len(part) // 2)
        except PredictorPoolError as error:  # there are no workers any more
            raise CommandError(one_line(str(error))) from error
        except Exception as error:  # noqa: BLE001 - a model can raise anything
            await self._refused(chunk, part, error, len(part) // 2)
        else:
            chunk.answers.append(([row for row, _ in part], by_column(outputs, len(part))))

    async def _refused(
        self, chunk: Chunk, part: Sequence[Any], error: Exception, size: int
    ) -> None:
        """Take note that a row was refused; where there are more, ask for so many at a time."""
        if len(part) > 1:
            await self._ask_each(chunk, part, size)
            return
        ((row, features),) = part
        chunk.refused.append((row, self._reason(features, error)))

    def _reason(self, features: Any, error: Exception) -> str:
        """Return in one line why a row was refused."""
        if isinstance(error, InvalidFeatures):
            try:
                self._signature.conform(features, one=True)  # whose words do not name a row 0
            except InvalidFeatures as better:
                error = better
        if not isinstance(error, PredictorPoolError):
            return f"the model raised {describe(error)}"
        return one_line(str(error).removesuffix(str(getattr(error, "traceback", ""))))

    def result(self, path: Path, before: int) -> ScoreResult:
        """Return what a finished run has done.

        Args:
            path: of the input.
            before: rows that an earlier run had done.
        """
        done, output = self._output.journal, self._output
        return ScoreResult(
            target=self._target,
            input=str(path),
            output=str(output.path),
            rows=done.rows,
            scored=done.scored,
            refused=done.refused,
            set_aside=str(output.aside_path) if done.refused else None,
            resumed_after=before,
            columns=done.columns,
            unused=self._unused,
            row_wise=self._row_wise,
            workers=self._workers,
            restarts=self._restarts,
            seconds=self._seconds,
            rows_per_second=(done.rows - before) / self._seconds if self._seconds else 0.0,
        )


# --- words -------------------------------------------------------------------------


def table(result: ScoreResult) -> Table:
    """Render the result for people."""
    facts = Table.grid(padding=(0, 2))
    for fact, said in facts_of(result):
        facts.add_row(fact, escape(said))
    return facts


def facts_of(result: ScoreResult) -> Iterator[tuple[str, str]]:
    """Yield what there is to say."""
    yield "rows", f"{result.rows:,} = {result.scored:,} scored + {result.refused:,} set aside"
    yield "output", f"{result.output}, with {', '.join(result.columns) or 'no columns'}"
    if result.set_aside is not None:
        yield "set aside", result.set_aside
    if result.unused:
        yield "not used", ", ".join(result.unused)
    if result.resumed_after:
        yield "resumed", f"after the {result.resumed_after:,} rows of an earlier run"
    if not result.row_wise:
        yield "row-wise", "no: each row was a call of its own, which takes longer"
    restarts = f"; {result.restarts} restarted" if result.restarts else ""
    yield "workers", f"{result.workers}{restarts}"
    yield "time", f"{result.seconds:,.1f} s, {result.rows_per_second:,.0f} rows/s"


@contextlib.contextmanager
def shown(console: Console, doing: str) -> Iterator[Report]:
    """Yield a `Report` that draws a bar with the rate and the time that is left."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    hidden = not console.is_interactive  # in a file a bar would be an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task(doing, total=1.0, said="starting")
        began: tuple[float, int] | None = None

        def report(now: Journal, part: float) -> None:
            nonlocal began
            began = began or (time.monotonic(), now.rows)
            rate = (now.rows - began[1]) / (time.monotonic() - began[0] or 1.0)
            aside = f", {now.refused:,} set aside" if now.refused else ""
            said = f"{now.rows:,} rows{aside}, {rate:,.0f} rows/s"
            progress.update(bar, completed=part, said=said)

        yield report
