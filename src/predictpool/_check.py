"""The check: one predictor, loaded in a worker and asked once, as a pool would do it.

`run` does that and returns a `CheckResult`; `table` renders one. Every mistake of the user's is a
`CommandError` of one line. The command line is in ``_cli``.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import numpy as np
import psutil
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from predictpool import (
    BrokenWorkerError,
    InvalidFeatures,
    Predictor,
    PredictorPool,
    PredictorPoolError,
    Signature,
    WorkerInfo,
    WorkerStartError,
)
from predictpool._command import CommandError, describe
from predictpool._features._signature import as_arrays
from predictpool._features._spec import REQUIRED, UNNAMED
from predictpool._target import find, require_predictor
from predictpool._worker import WarmUpFailed, one_line

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Feature:
    """What the predictor takes under one name.

    Attributes:
        name: ``""`` for a predictor that takes one unnamed array.
        dtype: of numpy, or ``"text"``.
        shape: of one row; None for an axis that varies.
        required: whether every request has to have it.
        default: what a row has otherwise; None where it is required.
        missing: what stands in for missing values; None where they are refused.
        allow_nan: whether NaN reaches the model.
        ragged: whether each row has a length of its own.
    """

    name: str
    dtype: str
    shape: Shape
    required: bool = True
    default: Any = None
    missing: Any = None
    allow_nan: bool = False
    ragged: bool = False


@dataclass(frozen=True)
class Output:
    """What the predictor returns under one name.

    Attributes:
        name: ``""`` where it returns no mapping.
        dtype: of numpy, ``"text"``, or the name of a type that is no array.
        shape: of one row, or of the whole array where the predictor is not row-wise; None for
            what is no array.
    """

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        target: what was checked, ``MODULE:PREDICTOR``.
        predictor: the name of its type.
        method: how the predictor keeps its model loaded; None where it does not say.
        features: what it takes; None where that is not known.
        outputs: what it returned; None where it was not asked, because nobody knows what for.
        row_wise: whether several requests may share one call.
        warning: what the worker found wrong with it, or ``""``.
        start_seconds: from nothing to ready: processes, imports, load and warm-up.
        load_seconds: load and warm-up alone.
        predict_seconds: one `predict` of the pool; None where it was not asked.
        rows: how many rows that had.
        pss_bytes: memory of the worker, its part of what it shares with the template.
        uss_bytes: memory that it has for itself.
        cores: those that it may use.
        threads: how many TensorFlow gets.
        gpu: the one that it sees, or ``""``.
    """

    target: str
    predictor: str
    method: str | None
    features: tuple[Feature, ...] | None
    outputs: tuple[Output, ...] | None
    row_wise: bool
    warning: str
    start_seconds: float
    load_seconds: float
    predict_seconds: float | None
    rows: int
    pss_bytes: int
    uss_bytes: int
    cores: tuple[int, ...]
    threads: int
    gpu: str = ""

    def to_json(self) -> str:
        """Return one JSON object that has these attributes."""
        return json.dumps(asdict(self), indent=2)

    @property
    def not_asked(self) -> str:
        """Why the predictor was not asked, with the remedy, or ``""``."""
        if self.outputs is not None:
            return ""
        return (
            f"{self.target} was loaded, but not asked: nobody knows what it takes. Declare its "
            "signature=, or name features that it can take: --features MODULE:FEATURES"
        )


def run(target: str, *, features: str | None, start_timeout: float) -> CheckResult:
    """Import a predictor, have a worker load it and warm it up, and ask it once.

    Args:
        target: ``MODULE:PREDICTOR``.
        features: ``MODULE:FEATURES``, what to warm up and to ask with; None for one row of zeros
            and empty text, where the signature is known.
        start_timeout: seconds that the worker may take to start.

    Raises:
        CommandError: any mistake of the user's.
    """
    predictor, given = find_predictor(target, features)
    return anyio.run(ask, target, predictor, given, start_timeout)


def find_predictor(target: str, features: str | None) -> tuple[Predictor[Any], Any]:
    """Return what ``MODULE:PREDICTOR`` names, and `find_features`.

    Raises:
        CommandError: one of them is not there, or is something else.
    """
    predictor = find(target, "PREDICTOR")
    require_predictor(target, predictor)
    return predictor, find_features(features, predictor)


def find_features(features: str | None, predictor: Predictor[Any]) -> Any:
    """Return what ``MODULE:FEATURES`` names; None where nothing is named.

    Raises:
        CommandError: it is not there, or the predictor cannot take it.
    """
    if features is None:
        return None
    given = find(features, "FEATURES")
    require_features(features, given, predictor)
    return given


def require_features(target: str, features: Any, predictor: Predictor[Any]) -> None:
    """Raise `CommandError` unless the features can be those of a request."""
    try:
        if isinstance(predictor.signature, Signature):
            predictor.signature.conform(features)
        else:
            as_arrays(features)
    except InvalidFeatures as error:
        raise CommandError(f"--features {target}: {one_line(str(error))}", exit_code=2) from error


# --- the predictor in a worker -----------------------------------------------------


async def ask(
    target: str, predictor: Predictor[Any], given: Any, start_timeout: float
) -> CheckResult:
    """Open a pool of one worker, predict once, and measure."""
    began = time.perf_counter()
    pool = await opened(predictor, given, start_timeout)
    start_seconds = time.perf_counter() - began
    try:
        features = example(pool.signature) if given is None else given
        outputs, predict_seconds = None, None
        if features is not None:
            began = time.perf_counter()
            outputs = await predict(pool, features)
            predict_seconds = time.perf_counter() - began
        worker, memory = measure(pool)
        return CheckResult(
            target=target,
            predictor=type(predictor).__name__,
            method=worker.method,
            features=features_of(pool.signature),
            outputs=None if features is None else outputs_of(outputs, worker.row_wise),
            row_wise=worker.row_wise,
            warning=worker.warning,
            start_seconds=start_seconds,
            load_seconds=worker.load_seconds,
            predict_seconds=predict_seconds,
            rows=0 if features is None else rows_of(features),
            pss_bytes=memory.pss,
            uss_bytes=memory.uss,
            cores=worker.device.cores,
            threads=worker.device.threads,
            gpu=worker.device.gpu,
        )
    finally:
        await pool.aclose()


async def opened(
    predictor: Predictor[Any], given: Any, start_timeout: float, **options: Any
) -> PredictorPool[Any]:
    """Return a pool whose first worker is ready; of one worker, unless the options say more."""
    options = {"workers": 1, "retries": 0, **options}
    try:
        pool = PredictorPool(predictor, warmup=given, start_timeout=start_timeout, **options)
        await pool.open()
    except WorkerStartError as error:
        raise start_failure(error, given is None) from error
    except (TypeError, OSError) as error:  # it is no predictor after all, or does not pickle
        raise CommandError(one_line(str(error))) from error
    return pool


def start_failure(error: WorkerStartError, own_warmup: bool) -> CommandError:
    """Return the error for a worker that did not become ready."""
    line, exit_code = one_line(str(error).removesuffix(error.traceback)), 1
    _, warmup_failed, why = line.partition(f"{WarmUpFailed.__module__}.{WarmUpFailed.__name__}: ")
    _, invalid, mistake = line.partition(f"{InvalidFeatures.__module__}.InvalidFeatures: ")
    if warmup_failed:
        line = why + (". Here, name them with --features MODULE:FEATURES" if own_warmup else "")
    elif invalid and not own_warmup:
        line, exit_code = f"--features do not fit the model: {mistake}", 2
    elif "start_timeout=" in line:
        line += ": give it longer with --start-timeout, or see with --verbose what it writes"
    elif not error.traceback:
        line += ": see with --verbose what it writes"
    return CommandError(line, exit_code=exit_code, details=error.traceback)


async def predict(pool: PredictorPool[Any], features: Any) -> Any:
    """Return the outputs, or raise `CommandError` if there are none."""
    try:
        return await pool.predict(features)
    except Exception as error:  # a model can raise anything
        details = str(getattr(error, "traceback", "") or getattr(error, "crash_report", ""))
        details = details or "\n".join(getattr(error, "__notes__", ()))
        own = isinstance(error, PredictorPoolError)
        line = one_line(str(error).removesuffix(details)) if own else describe(error)
        if isinstance(error, BrokenWorkerError) and not details:
            line += ": see with --verbose what it writes"
        raise CommandError(f"predict failed: {line}", details=details) from error


def measure(pool: PredictorPool[Any]) -> tuple[WorkerInfo, Any]:
    """Return the worker and its memory."""
    try:
        (worker,) = pool.workers()
        return worker, psutil.Process(worker.pid).memory_full_info()
    except (ValueError, psutil.NoSuchProcess) as error:
        raise CommandError(
            "the worker ended by itself after it was ready: see with --verbose what it writes"
        ) from error


def example(signature: Signature | None) -> Any:
    """Return one row of zeros and empty text, or None where nobody knows what to give."""
    if signature is None:
        return None
    arrays = signature.example()
    return arrays[UNNAMED] if signature.unnamed else arrays


def rows_of(features: Any) -> int:
    """Return how many rows there are."""
    arrays, _ = as_arrays(features)
    return len(next(iter(arrays.values())))


def features_of(signature: Signature | None) -> tuple[Feature, ...] | None:
    """Describe what the predictor takes."""
    if signature is None:
        return None
    return tuple(
        Feature(
            name,
            "text" if spec.dtype.kind == "O" else str(spec.dtype),
            spec.shape,
            spec.default is REQUIRED,
            None if spec.default is REQUIRED else plain(spec.default),
            None if spec.missing is REQUIRED else plain(spec.missing),
            spec.allow_nan,
            spec.ragged,
        )
        for name, spec in signature.features.items()
    )


def outputs_of(outputs: Any, row_wise: bool) -> tuple[Output, ...]:
    """Describe what the predictor returned."""
    named = outputs if isinstance(outputs, Mapping) else {"": outputs}
    return tuple(
        Output(str(name), dtype_of(value), value.shape[1:] if row_wise else value.shape)
        if isinstance(value, np.ndarray)
        else Output(str(name), type(value).__name__, None)
        for name, value in named.items()
    )


def dtype_of(values: Any) -> str:
    """Return the name of an array's dtype; that of TensorFlow's strings is object."""
    text = values.dtype.kind == "O" and all(isinstance(item, bytes | str) for item in values.flat)
    return "text" if text else str(values.dtype)


def plain(value: Any) -> Any:
    """Return a default in the types that JSON has."""
    values = np.asarray(value).tolist()
    if isinstance(values, list):
        return [plain(item) for item in values]
    if isinstance(values, bytes):
        return values.decode(errors="replace")
    return values if isinstance(values, bool | int | float | str) else str(values)


# --- words -------------------------------------------------------------------------


def table(result: CheckResult) -> Group:
    """Render the result for people."""
    facts = Table.grid(padding=(0, 2))
    for fact, words in facts_of(result):
        facts.add_row(fact, escape(words))
    parts = [facts]
    if result.features is not None:
        parts.append(features_table(result.features))
    if result.outputs is not None:
        parts.append(outputs_table(result.outputs, result.row_wise))
    return Group(*parts)


def facts_of(result: CheckResult) -> Iterator[tuple[str, str]]:
    """Yield what there is to say besides the signature and the outputs."""
    yield "predictor", f"{result.target}, {result.predictor}"
    if result.method is not None:
        yield "method", result.method
    shared = "several requests may share one call" if result.row_wise else "each request alone"
    yield "row-wise", f"{'yes' if result.row_wise else 'no'}: {shared}"
    if result.warning:
        yield "warning", result.warning
    yield (
        "start",
        f"{result.start_seconds:.2f} s; load and warm-up {result.load_seconds:.2f} s",
    )
    if result.predict_seconds is not None:
        rows = "1 row" if result.rows == 1 else f"{result.rows} rows"
        yield "one call", f"{result.predict_seconds * 1e3:,.2f} ms for {rows}"
    megabytes = (result.pss_bytes / 1e6, result.uss_bytes / 1e6)
    yield "memory", "{:,.0f} MB (PSS), of which {:,.0f} MB its own (USS)".format(*megabytes)
    cores = ", ".join(map(str, result.cores))
    kind = f"GPU {result.gpu}" if result.gpu else "CPU"
    yield "device", f"{kind}; cores: {cores}; threads: {result.threads}"


def features_table(features: tuple[Feature, ...]) -> Table:
    """Render the signature."""
    rendered = Table("feature", "dtype", "row shape", "left out", "missing values")
    for feature in features:
        shape = "any length" if feature.ragged else shape_of(feature.shape)
        left_out = "refused" if feature.required else repr(feature.default)
        missing = "refused" if feature.missing is None else repr(feature.missing)
        missing = "NaN allowed" if feature.allow_nan else missing
        words = (feature.name or "(one array)", feature.dtype, shape, left_out, missing)
        rendered.add_row(*map(escape, words))
    return rendered


def outputs_table(outputs: tuple[Output, ...], row_wise: bool) -> Table:
    """Render what came back."""
    rendered = Table("output", "dtype", "row shape" if row_wise else "whole shape")
    for output in outputs:
        shape = "" if output.shape is None else shape_of(output.shape)
        rendered.add_row(*map(escape, (output.name or "(unnamed)", output.dtype, shape)))
    return rendered


def shape_of(shape: Shape) -> str:
    """Return a shape as Python writes it, but that an axis that varies is called so."""
    return str(shape).replace("None", "any")
