"""The command line: ``predictpool …``, also ``python -m predictpool …``."""

import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from predictpool._command import CommandError

Result = TypeVar("Result")


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        _require_libraries()
        _app()()
    except KeyboardInterrupt:  # while all this is imported
        raise SystemExit(130) from None


def _require_libraries() -> None:
    """End with one line where what the command line needs is not installed."""
    try:
        import psutil  # noqa: F401
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        needed = 'the command line needs typer, rich and psutil: pip install "predictpool[cli]"'
        print(f"predictpool: {needed}", file=sys.stderr)
        raise SystemExit(2) from None


def _app() -> "typer.Typer":
    """Return the typer application; built in a function because typer is optional."""
    import typer

    app = typer.Typer(
        name="predictpool",
        help="TensorFlow predictions for asynchronous applications: try, measure, serve, score.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # an error that nobody foresaw keeps its plain traceback
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"predictpool {importlib.metadata.version('predictpool')}")
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=show_version, is_eager=True, help="Print the version."
            ),
        ] = False,
    ) -> None:
        pass

    _add_demo(app)
    _add_check(app)
    _add_export(app)
    _add_serve(app)
    _add_score(app)
    _add_bench(app)
    _add_devices(app)
    return app


def _add_demo(app: "typer.Typer") -> None:
    """Give the application its command ``demo``."""
    import typer

    from predictpool import _census
    from predictpool._options import AsJson

    @app.command()
    def demo(
        rows: Annotated[
            int,
            typer.Option(min=1, max=_census.HELD_OUT_ROWS, help="Held-out rows to predict."),
        ] = _census.HELD_OUT_ROWS,
        workers: Annotated[int, typer.Option(min=1, help="Processes in each pool.")] = 2,
        steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = _census.TRAINING_STEPS,
        model_dir: Annotated[
            Path | None,
            typer.Option(
                file_okay=False,
                help="Keep the model here, and use the one that is here.",
                show_default="a temporary directory",
            ),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Train a classifier on census rows and ask it in five ways, every answer checked."""
        _demo(rows, workers, steps, model_dir, as_json)


def _demo(rows: int, workers: int, steps: int, model_dir: Path | None, as_json: bool) -> None:
    """Run the demo and print what it found; errors that the user can act on are one line."""
    import rich
    import rich.console

    from predictpool import PredictorPoolError
    from predictpool._command import CommandError
    from predictpool._demo import require_estimators, run, shown, table

    try:
        with rich.console.Console(stderr=True).status("Importing TensorFlow"):
            require_estimators()
        with shown() as report:
            result = run(
                rows=rows, workers=workers, steps=steps, model_dir=model_dir, report=report
            )
    except (CommandError, PredictorPoolError) as error:
        print(f"predictpool: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    _show(result, table, as_json)


def _add_check(app: "typer.Typer") -> None:
    """Give the application its command ``check``."""
    import typer

    from predictpool._options import Target

    @app.command()
    def check(
        target: Target,
        features: Annotated[
            str | None,
            typer.Option(
                metavar="MODULE:FEATURES",
                help="Warm up and predict with these, as with the pool's warmup=.",
                show_default="one row of zeros and empty text",
            ),
        ] = None,
        start_timeout: Annotated[
            float, typer.Option(min=0.0, help="Seconds to start, load and warm up.")
        ] = 120.0,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose", help="Show tracebacks, and what the module and the worker write."
            ),
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object, in seconds and bytes.")
        ] = False,
    ) -> None:
        """Load a predictor in a worker, warm it up, predict once, and show what it is like.

        The exit code is 0 if all is well, 1 if the predictor does not work, and 2 if this command
        was called wrongly.
        """
        _check(target, features, start_timeout, verbose, as_json)


def _check(
    target: str, features: str | None, start_timeout: float, verbose: bool, as_json: bool
) -> None:
    """Run the check and print what it found; errors that the user can act on are one line."""

    from predictpool import _check

    result = _one_line_errors(
        f"Checking {target}",
        verbose,
        lambda: _check.run(target, features=features, start_timeout=start_timeout),
    )
    _show(result, _check.table, as_json)
    if result.not_asked:
        print(f"predictpool: {result.not_asked}", file=sys.stderr)
        raise SystemExit(2)


def _add_export(app: "typer.Typer") -> None:
    """Give the application its command ``export``."""
    import typer

    from predictpool._options import Verbose

    @app.command()
    def export(
        target: Annotated[
            str,
            typer.Argument(
                metavar="MODULE:ESTIMATOR",
                help="An EstimatorPredictor, or a function that builds an Estimator, as in "
                "models.income:predictor; the current directory is on Python's path.",
            ),
        ],
        out: Annotated[
            Path,
            typer.Argument(
                metavar="OUT", file_okay=False, help="The folder that gets a new version."
            ),
        ],
        *,
        features: Annotated[
            str | None,
            typer.Option(
                metavar="MODULE:FEATURES",
                help="Compare with these rows; the more they differ, the better.",
                show_default="one row of zeros and empty text",
            ),
        ] = None,
        start_timeout: Annotated[
            float, typer.Option(min=0.0, help="Seconds for each worker to start and load.")
        ] = 120.0,
        verbose: Verbose = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Write an Estimator's model as a SavedModel, for a current TensorFlow.

        It is written only if it says the same as the Estimator. The exit code is 0 if it does, 1
        if the model cannot be exported, and 2 if this command was called wrongly.
        """
        _export(
            target,
            out,
            features=features,
            start_timeout=start_timeout,
            verbose=verbose,
            as_json=as_json,
        )


def _export(
    target: str,
    out: Path,
    *,
    features: str | None,
    start_timeout: float,
    verbose: bool,
    as_json: bool,
) -> None:
    """Export and print what became of it; errors that the user can act on are one line."""

    from predictpool import _export

    result = _one_line_errors(
        f"Exporting {target}",
        verbose,
        lambda: _export.run(target, out, features=features, start_timeout=start_timeout),
    )
    _show(result, _export.table, as_json)


def _add_serve(app: "typer.Typer") -> None:
    """Give the application its command ``serve``."""
    import typer

    from predictpool._options import Target

    @app.command()
    def serve(
        target: Target,
        *,
        name: Annotated[
            str | None,
            typer.Option(
                help="What clients call the model.", show_default="the name of the attribute"
            ),
        ] = None,
        host: Annotated[
            str, typer.Option(help="Where to listen; 0.0.0.0 for all addresses.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
        workers: Annotated[
            int | None,
            typer.Option(
                min=1, help="Processes that predict.", show_default="one for each core or GPU"
            ),
        ] = None,
        max_batch_size: Annotated[
            int, typer.Option(min=1, help="Rows of different requests in one call of the model.")
        ] = 64,
        max_waiting: Annotated[
            int, typer.Option(min=0, help="Requests that may wait; one more gets 429.")
        ] = 1024,
        timeout: Annotated[
            float, typer.Option(min=0.0, help="Seconds for a request; longer gets 504.")
        ] = 30.0,
        max_body_megabytes: Annotated[
            float, typer.Option(min=0.0, help="A larger body gets 413.")
        ] = 16.0,
        watch: Annotated[
            float | None,
            typer.Option(
                help="Look every so many seconds for a newer version of the model, and load it.",
                show_default="never",
            ),
        ] = None,
        start_timeout: Annotated[
            float, typer.Option(min=0.0, help="Seconds for a worker to start, load and warm up.")
        ] = 120.0,
        grace_period: Annotated[
            float, typer.Option(min=0.0, help="Seconds for requests to finish at the end.")
        ] = 10.0,
        features: Annotated[
            str | None,
            typer.Option(
                metavar="MODULE:FEATURES",
                help="Warm up with these.",
                show_default="one row of zeros and empty text",
            ),
        ] = None,
        verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print what is served, and where, as JSON.")
        ] = False,
    ) -> None:
        """Serve a predictor over HTTP, for clients of KServe, Triton and TensorFlow Serving.

        It says when it is ready, and ends in good order at Ctrl-C and SIGTERM. The exit code is 0
        if it was told to end, 1 if the predictor does not work, and 2 if this command was called
        wrongly.
        """
        _serve(
            target,
            verbose,
            as_json,
            name=name,
            host=host,
            port=port,
            max_body_bytes=int(max_body_megabytes * 1e6),
            features=features,
            workers=workers,
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            timeout=timeout,
            watch=watch,
            start_timeout=start_timeout,
            grace_period=grace_period,
        )


def _serve(target: str, verbose: bool, as_json: bool, **options: Any) -> None:
    """Serve until somebody ends it; errors that the user can act on are one line."""
    import importlib.util

    needed = ("httptools", "orjson", "prometheus_client", "uvicorn", "uvloop")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        said = f"serve needs {', '.join(missing)}"
        print(f'predictpool: {said}: pip install "predictpool[serve]"', file=sys.stderr)
        raise SystemExit(2)
    from predictpool.serve import _run

    with _errors_in_one_line(verbose), _own_stdout() as stdout:

        def announce(serving: _run.Serving) -> None:
            print(serving.to_json() if as_json else serving, file=stdout, flush=True)

        _run.run(target, announce=announce, **options)


@contextlib.contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """Keep stdout for ourselves: whatever else prints, here or in a worker, does so on stderr.

    Who reads the announcement need not read on, and a pipe that nobody reads gets full.
    """
    with os.fdopen(os.dup(1), "w") as stdout:
        sys.stdout.flush()
        os.dup2(2, 1)
        try:
            yield stdout
        finally:
            sys.stdout.flush()
            os.dup2(stdout.fileno(), 1)


def _add_score(app: "typer.Typer") -> None:
    """Give the application its command ``score``."""
    import typer

    from predictpool._options import AsJson, StartTimeout, Target, Verbose

    @app.command()
    def score(
        target: Target,
        source: Annotated[
            Path,
            typer.Argument(
                metavar="INPUT", help="The rows: a file that ends with .csv, .jsonl or .parquet."
            ),
        ],
        output: Annotated[
            Path,
            typer.Argument(metavar="OUTPUT", help="What the model says to them; the same endings."),
        ],
        *,
        keep: Annotated[
            str,
            typer.Option(
                metavar="COLUMN,...",
                help="Columns of INPUT that OUTPUT gets, too.",
                show_default="none",
            ),
        ] = "",
        workers: Annotated[
            int | None,
            typer.Option(
                min=1, help="Processes in the pool.", show_default="one for each core or GPU"
            ),
        ] = None,
        request_rows: Annotated[
            int, typer.Option(min=1, help="Rows in each request; fewer where rows are large.")
        ] = 256,
        features: Annotated[
            str | None,
            typer.Option(
                metavar="MODULE:FEATURES",
                help="Warm up with these, as with the pool's warmup=.",
                show_default="one row of zeros and empty text",
            ),
        ] = None,
        start_timeout: StartTimeout = 120.0,
        verbose: Verbose = False,
        as_json: AsJson = False,
    ) -> None:
        """Predict for all rows of a file, and write what the model says to them.

        A row that is refused is set aside, in OUTPUT.refused.jsonl, with its line and the reason.
        Stopped or killed, the same command goes on where it was. The exit code is 0 if all rows
        were scored, 3 if some were set aside, 1 if the predictor does not work, and 2 if this
        command was called wrongly.
        """
        options = {"workers": workers, "request_rows": request_rows, "features": features}
        columns = [name for name in keep.split(",") if name]
        arguments = {"keep": columns, "start_timeout": start_timeout, **options}
        _score_file((target, source, output), arguments, verbose, as_json)


def _score_file(
    files: tuple[str, Path, Path], arguments: Any, verbose: bool, as_json: bool
) -> None:
    """Score and print what became of it; errors that the user can act on are one line."""
    from predictpool import _score

    def run(console: "Console") -> _score.ScoreResult:
        with _score.shown(console, f"Scoring {files[1].name}") as report:
            return _score.run(*files, **arguments, report=report)

    result = _on_the_terminal(verbose, run)
    _show(result, _score.table, as_json)
    if result.incomplete:
        print(f"predictpool: {result.incomplete}", file=sys.stderr)
        raise SystemExit(3)


def _add_bench(app: "typer.Typer") -> None:
    """Give the application its command ``bench``."""
    import typer

    from predictpool._options import AsJson, StartTimeout, Target, Verbose

    @app.command()
    def bench(
        target: Target,
        *,
        features: Annotated[
            str | None,
            typer.Option(
                metavar="MODULE:FEATURES",
                help="What each request asks for, and warms up with.",
                show_default="one row of zeros and empty text",
            ),
        ] = None,
        workers: Annotated[
            str,
            typer.Option(
                metavar="N,...",
                help="Numbers of workers to try.",
                show_default="1, 2, 4 and so on, up to one for each core",
            ),
        ] = "",
        callers: Annotated[int, typer.Option(min=1, help="Callers that ask at one time.")] = 64,
        seconds: Annotated[
            float, typer.Option(min=0.01, help="What each round takes; there are 4 for each line.")
        ] = 1.0,
        plot: Annotated[
            Path | None,
            typer.Option(
                dir_okay=False, help="Draw it, in a .png or .svg.", show_default="no drawing"
            ),
        ] = None,
        start_timeout: StartTimeout = 120.0,
        verbose: Verbose = False,
        as_json: AsJson = False,
    ) -> None:
        """Measure latency and throughput with more and fewer workers, and larger batches.

        It ends with the options to take. The exit code is 0, 1 if the predictor does not work, and
        2 if this command was called wrongly.
        """
        counts = _counts("--workers", workers)
        arguments: dict[str, Any] = {"features": features, "callers": callers, "seconds": seconds}
        arguments |= {"workers": counts, "plot_file": plot, "start_timeout": start_timeout}
        _bench(target, arguments, verbose, as_json)


def _counts(option: str, text: str) -> list[int]:
    """Return the numbers that an option lists."""
    import typer

    numbers = [part.strip() for part in text.split(",") if part.strip()]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise typer.BadParameter(
            f"{text!r}, expected numbers from 1 with commas between them, for example 1,2,4",
            param_hint=option,
        )
    return [int(number) for number in numbers]


def _bench(target: str, arguments: Any, verbose: bool, as_json: bool) -> None:
    """Measure and print what was found; errors that the user can act on are one line."""
    from predictpool import _bench

    def run(console: "Console") -> _bench.BenchResult:
        with _bench.shown(console) as report:
            return _bench.run(target, **arguments, report=report)

    _show(_on_the_terminal(verbose, run), _bench.table, as_json)


def _add_devices(app: "typer.Typer") -> None:
    """Give the application its command ``devices``."""
    import typer

    @app.command()
    def devices(
        wanted: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[DEVICE]...",
                help="As the pool's devices=: one for all workers, or one for each.",
                show_default="auto",
            ),
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(min=1, help="How many workers.", show_default="as many as fit"),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Say where a pool's workers would be on this machine; nothing is started.

        The exit code is 2 if it cannot be.
        """
        _devices(wanted or ["auto"], workers, as_json)


def _devices(wanted: list[str], workers: int | None, as_json: bool) -> None:
    """Print the plan; errors that the user can act on are one line."""
    from predictpool import LocalLauncher
    from predictpool._devices import parse_devices

    devices = wanted[0] if len(wanted) == 1 else wanted
    try:
        plan = LocalLauncher().plan(parse_devices(devices, workers), workers)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"predictpool: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if as_json:
        print(json.dumps({"devices": [asdict(device) for device in plan]}, indent=2))
    else:
        print(*(f"slot {slot}: {device}" for slot, device in enumerate(plan)), sep="\n")


def _show(result: Any, table: Callable[[Any], object], as_json: bool) -> None:
    """Print a result, for programs or for people."""
    import rich

    if as_json:
        print(result.to_json())
    else:
        rich.print(table(result))


def _one_line_errors(doing: str, verbose: bool, run: Callable[[], Result]) -> Result:
    """Return what ``run`` returns; end with one line where the user made a mistake."""

    def with_status(console: "Console") -> Result:
        with console.status(doing):
            return run()

    return _on_the_terminal(verbose, with_status)


def _on_the_terminal(verbose: bool, run: "Callable[[Console], Result]") -> Result:
    """Do the same for what shows its progress itself, on stderr."""
    import rich.console

    from predictpool._command import quietly

    with _errors_in_one_line(verbose), quietly(verbose) as terminal:
        return run(rich.console.Console(file=terminal))


@contextlib.contextmanager
def _errors_in_one_line(verbose: bool) -> Iterator[None]:
    """Import and run what is the user's; end with one line where there is a mistake in it."""
    from predictpool._command import CommandError

    # At the last moment: a file of the user's must not pass for a library of ours.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    except CommandError as error:
        raise SystemExit(_told(error, verbose)) from error
    except KeyboardInterrupt:  # which older versions of click turn into "Aborted!" and 1
        raise SystemExit(130) from None


def _told(error: "CommandError", verbose: bool) -> int:
    """Print an error of the user's in one line, and return the exit code."""
    hint = "; --verbose shows the traceback" if error.details and not verbose else ""
    print(f"predictpool: {error}{hint}", file=sys.stderr)
    if verbose and error.details:
        print(error.details, file=sys.stderr)
    return error.exit_code
