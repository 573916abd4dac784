"""The check: one predictor, loaded in a worker and asked once, as a pool would do it.

`run` does that and returns a `CheckResult`; `table` renders one, and `quietly` keeps off the
terminal what others write meanwhile. Every mistake of the user's is a `CheckError` of one line.
The command line is in ``_cli``.
"""

import contextlib
import difflib
import importlib
import inspect
import json
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

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
from predictpool._pool import PREDICTOR_NAMES, lacking
from predictpool._signature import REQUIRED, UNNAMED, as_arrays
from predictpool._worker import WarmUpFailed, one_line

Shape = tuple[int | None, ...]


class CheckError(Exception):
    """What went wrong in one line, with the remedy.

    Attributes:
        exit_code: for the shell: 1 if the predictor does not work, 2 if the command was called
            wrongly.
        details: a traceback for those who ask for it, or ``""``.
    """

    def __init__(self, message: str, *, exit_code: int = 1, details: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.details = details


@dataclass(frozen=True)
class Feature:
    """What the predictor takes under one name.

    Attributes:
        name: ``""`` for a predictor that takes one unnamed array.
        dtype: of numpy, or ``"text"``.
        shape: of one row; None for an axis that varies.
        required: whether every request has to have it.
        default: what a row has otherwise; None where it is required.
    """

    name: str
    dtype: str
    shape: Shape
    required: bool
    default: Any


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
        method: how an Estimator is kept loaded; None for other predictors.
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
        CheckError: any mistake of the user's.
    """
    predictor = find(target, "PREDICTOR")
    require_predictor(target, predictor)
    given = None if features is None else find(features, "FEATURES")
    if features is not None:
        require_features(features, given, predictor)
    return anyio.run(ask, target, predictor, given, start_timeout)


# --- what the user names -----------------------------------------------------------


def find(target: str, what: str) -> Any:
    """Import ``MODULE:ATTRIBUTE`` and return what it names.

    Args:
        target: the module as in an ``import``, a colon, and a name in it, which may have dots.
        what: what the attribute should be, in capitals, for the messages.

    Raises:
        CheckError: it is not of this form, cannot be imported, or is not there.
    """
    name, _, attribute = target.partition(":")
    if "/" in name or name.endswith(".py"):
        raise path_error(name, attribute or what)
    if not all(name.split(".")) or not all(map(str.isidentifier, attribute.split("."))):
        raise CheckError(
            f"{target!r} is not MODULE:{what}, two names with a colon between them, "
            f"for example models.income:{what.lower()}",
            exit_code=2,
        )
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise import_failure(name, error) from error
    holder = name
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise missing_attribute(holder, found, part, what) from error
        holder += f"{'.' if ':' in holder else ':'}{part}"
    return found


def path_error(name: str, attribute: str) -> CheckError:
    """Return the error for a file where a module is expected."""
    parts = Path(name.removesuffix(".py")).parts
    if not all(map(str.isidentifier, parts)):  # absolute, or up and down again
        return CheckError(
            f"{name!r} is a path: change into a folder above that file and name the module "
            f"as Python imports it, for example income:{attribute}",
            exit_code=2,
        )
    return CheckError(
        f"{name!r} is a path: name the module as Python imports it, {'.'.join(parts)}:{attribute}",
        exit_code=2,
    )


def import_failure(name: str, error: BaseException) -> CheckError:
    """Return the error for a module that cannot be imported."""
    where = place(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        if not where:  # none of the user's code ran: it is this very module
            return missing_module(error.name)
        remedy = "install it there, or correct the import"
        if error.name == "tensorflow":
            remedy = 'pip install "predictpool[estimator]" (Python 3.11)'
        said = f"imports {error.name!r}, which {sys.executable} does not find ({where}): {remedy}"
    elif isinstance(error, SystemExit):
        said = (
            f"ends the program while it is imported ({where}): put what it does as a program "
            'under `if __name__ == "__main__":`'
        )
    else:
        said = f"cannot be imported: {describe(error)} ({where or 'in no file'})"
    return CheckError(f"{name} {said}", details="".join(traceback.format_exception(error)))


def place(error: BaseException) -> str:
    """Return ``file:line`` where an import failed, the user's own rather than a library's.

    "" if no module was found to run.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{shown(error.filename)}:{error.lineno}"
    machinery = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if not Path(shown(frame.filename)).is_absolute()]
    return f"{shown((own or frames)[-1].filename)}:{(own or frames)[-1].lineno}" if frames else ""


def shown(file: str) -> str:
    """Return a file of the current directory as it is called there; all others in full."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts:
        return str(path.relative_to(Path.cwd()))
    return file


def missing_module(name: str) -> CheckError:
    """Return the error for a module that is nowhere."""
    parent, _, last = name.rpartition(".")
    folders = list(getattr(sys.modules[parent], "__path__", [])) if parent else [str(Path.cwd())]
    hint = did_you_mean(last, (module.name for module in pkgutil.iter_modules(folders)))
    where = f"in {parent!r}" if parent else f"in {Path.cwd()} or elsewhere on Python's path"
    remedy = "correct the name" if parent else "change into its folder, or set PYTHONPATH"
    return CheckError(f"there is no module {name!r} {where}: {hint or remedy}", exit_code=2)


def missing_attribute(holder: str, found: Any, name: str, what: str) -> CheckError:
    """Return the error for a name that is not in a module, or in what was found there."""
    hint = did_you_mean(name, dir(found))
    if isinstance(found, ModuleType) and found.__file__:
        holder += f" ({shown(found.__file__)})"
    if what != "PREDICTOR" or not isinstance(found, ModuleType):
        return CheckError(f"{holder} has no {name!r}: {hint or 'correct the name'}", exit_code=2)
    there = [
        attribute
        for attribute, value in vars(found).items()
        if not attribute.startswith("_") and looks_like_a_predictor(value)
    ]
    predictors = (
        f"it has the predictors {', '.join(there)}"
        if there
        else "it has no predictor, so make one there, predictor = EstimatorPredictor(...)"
    )
    hint += " " if hint else ""
    return CheckError(f"{holder} has no {name!r}: {hint}{predictors}", exit_code=2)


def looks_like_a_predictor(value: Any) -> bool:
    """Whether a value of the user's module is a predictor, without running any of its code."""
    nothing = object()
    return not isinstance(value, type | ModuleType) and all(
        inspect.getattr_static(value, name, nothing) is not nothing for name in PREDICTOR_NAMES
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest of those known, or ``""``."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def require_predictor(target: str, value: Any) -> None:
    """Raise `CheckError` unless it is a predictor."""
    name = target.rpartition(":")[2].rpartition(".")[2]
    kind = type(value).__name__
    if isinstance(value, type):
        what = "a class"
        remedy = f"name a predictor made from it, predictor = {name}(...)"
    elif isinstance(value, Predictor):
        return
    elif isinstance(value, PredictorPool):
        what, remedy = "a pool", "name the predictor that it was given"
    elif any(base.__module__.startswith("tensorflow_estimator") for base in type(value).__mro__):
        what = f"an Estimator ({kind})"
        remedy = (
            "it does not pickle, so wrap the function that builds it, "
            "predictor = EstimatorPredictor(build_estimator)"
        )
    elif inspect.isroutine(value):
        what = "a function"
        remedy = (
            f"wrap it, predictor = EstimatorPredictor({name}) if it returns an Estimator, "
            f"FunctionPredictor({name}) if it returns a function that predicts; if it returns a "
            f"predictor, name that, predictor = {name}()"
        )
    else:
        what = f"of the type {kind}"
        remedy = "name an EstimatorPredictor, a FunctionPredictor or a Predictor of your own"
        if len(lacks := lacking(value)) < len(PREDICTOR_NAMES):
            remedy = f"it lacks {', '.join(lacks)}"
    raise CheckError(f"{target} is {what}, not a predictor: {remedy}", exit_code=2)


def require_features(target: str, features: Any, predictor: Predictor[Any]) -> None:
    """Raise `CheckError` unless the features can be those of a request."""
    try:
        if isinstance(predictor.signature, Signature):
            predictor.signature.conform(features)
        else:
            as_arrays(features)
    except InvalidFeatures as error:
        raise CheckError(f"--features {target}: {one_line(str(error))}", exit_code=2) from error


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
            method=getattr(predictor, "method", None),
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
        )
    finally:
        await pool.aclose()


async def opened(predictor: Predictor[Any], given: Any, start_timeout: float) -> PredictorPool[Any]:
    """Return a pool whose worker is ready."""
    try:
        pool = PredictorPool(
            predictor, workers=1, retries=0, warmup=given, start_timeout=start_timeout
        )
        await pool.open()
    except WorkerStartError as error:
        raise start_failure(error, given is None) from error
    except (TypeError, OSError) as error:  # it is no predictor after all, or does not pickle
        raise CheckError(one_line(str(error))) from error
    return pool


def start_failure(error: WorkerStartError, own_warmup: bool) -> CheckError:
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
    return CheckError(line, exit_code=exit_code, details=error.traceback)


async def predict(pool: PredictorPool[Any], features: Any) -> Any:
    """Return the outputs, or raise `CheckError` if there are none."""
    try:
        return await pool.predict(features)
    except Exception as error:  # a model can raise anything
        details = str(getattr(error, "traceback", "") or getattr(error, "crash_report", ""))
        details = details or "\n".join(getattr(error, "__notes__", ()))
        own = isinstance(error, PredictorPoolError)
        line = one_line(str(error).removesuffix(details)) if own else describe(error)
        if isinstance(error, BrokenWorkerError) and not details:
            line += ": see with --verbose what it writes"
        raise CheckError(f"predict failed: {line}", details=details) from error


def measure(pool: PredictorPool[Any]) -> tuple[WorkerInfo, Any]:
    """Return the worker and its memory."""
    try:
        (worker,) = pool.workers()
        return worker, psutil.Process(worker.pid).memory_full_info()
    except (ValueError, psutil.NoSuchProcess) as error:
        raise CheckError(
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


def describe(error: BaseException) -> str:
    """Return an exception in one line, as a traceback ends with it."""
    # A syntax error's own text has the place once more.
    text = one_line(error.msg if isinstance(error, SyntaxError) else str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
    yield "device", f"CPU; cores: {cores}; threads: {result.threads}"


def features_table(features: tuple[Feature, ...]) -> Table:
    """Render the signature."""
    rendered = Table("feature", "dtype", "row shape", "default")
    for feature in features:
        default = "required" if feature.required else repr(feature.default)
        name = feature.name or "(one array)"
        rendered.add_row(*map(escape, (name, feature.dtype, shape_of(feature.shape), default)))
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


@contextlib.contextmanager
def quietly(verbose: bool) -> Iterator[TextIO]:
    """Keep off the terminal what the user's module, its libraries and the worker write.

    It goes to stderr if it is wanted, and else nowhere: stdout is for the result.

    Yields:
        a stream to the real stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    sink = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(sink, number)
        with open(kept[1], "w", closefd=False) as terminal:
            yield terminal
    finally:
        sys.stdout.flush()  # before the switch: it goes the way of the rest
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
        for descriptor in (*kept, sink):
            os.close(descriptor)
