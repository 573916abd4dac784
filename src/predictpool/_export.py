"""The bridge: an Estimator's model as a SavedModel that a current TensorFlow serves.

`run` has a worker export the model, asks the Estimator and a `SavedModelPredictor` for the same
rows, and puts the SavedModel where it is wanted only if they agree. It returns an `ExportResult`;
`table` renders one. Every mistake of the user's is a `CommandError` of one line. The command line
is in ``_cli``.
"""

import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from predictpool import EstimatorPredictor, PredictorPool, SavedModelPredictor, Signature
from predictpool._check import (
    Feature,
    Output,
    features_of,
    features_table,
    find_features,
    opened,
    outputs_of,
    outputs_table,
    plain,
    predict,
)
from predictpool._command import CommandError
from predictpool._features._spec import REQUIRED, UNNAMED, Arrays
from predictpool._target import find, require_predictor
from predictpool.predictors._estimator_export import (
    OUTPUT,
    SIGNATURES,
    Answer,
    ExportingPredictor,
    exported_name,
)

TOLERANCE = 1e-6  # relative and absolute, of floats; everything else has to be equal
ROW_COUNTS = (1, 2, 7)  # besides all rows that were given


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        target: what was exported, ``MODULE:ESTIMATOR``.
        path: the new version's folder.
        tensorflow: the version that wrote it.
        signatures: the names of its signatures; they are the same.
        features: what it takes.
        outputs: what it returns.
        rows: how many rows were given to both, in requests of these sizes.
        own_rows: whether they were the user's, rather than zeros and empty text.
        max_difference: the largest one between two floats of the answers.
        left_behind: what the SavedModel does not do, in words.
        serve: the predictor that serves it, as Python.
    """

    target: str
    path: str
    tensorflow: str
    signatures: tuple[str, ...]
    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    rows: tuple[int, ...]
    own_rows: bool
    max_difference: float
    left_behind: tuple[str, ...]
    serve: str

    def to_json(self) -> str:
        """Return one JSON object that has these attributes."""
        return json.dumps(asdict(self), indent=2)


def run(target: str, out: Path, *, features: str | None, start_timeout: float) -> ExportResult:
    """Export an Estimator, and see that the SavedModel says the same.

    Args:
        target: ``MODULE:ESTIMATOR``: an `EstimatorPredictor`, or a function that builds the
            Estimator.
        out: the folder that gets a new version.
        features: ``MODULE:FEATURES``, what to ask both with; None for one row of zeros and empty
            text, again and again.
        start_timeout: seconds that each worker may take to start.

    Raises:
        CommandError: any mistake of the user's, what cannot be exported, and answers that differ.
    """
    predictor = estimator_predictor(target, find(target, "ESTIMATOR"))
    given = find_features(features, predictor)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that it can be renamed; whoever serves takes numbers only.
        parent = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    except OSError as error:
        raise CommandError(f"OUT cannot be written: {error}", exit_code=2) from error
    try:
        return anyio.run(export, target, predictor, given, start_timeout, parent)
    finally:
        shutil.rmtree(parent)


def estimator_predictor(target: str, value: Any) -> EstimatorPredictor:
    """Return the predictor that was named, or one of the function that was named."""
    if isinstance(value, EstimatorPredictor):
        return value
    if inspect.isroutine(value):
        return EstimatorPredictor(value)
    require_predictor(target, value)
    raise CommandError(
        f"{target} is a {type(value).__name__}: expected an EstimatorPredictor, or a function that "
        "builds an Estimator. Only Estimators have to be exported",
        exit_code=2,
    )


async def export(
    target: str, predictor: EstimatorPredictor, given: Any, start_timeout: float, parent: Path
) -> ExportResult:
    """Export into a folder in ``parent``, compare, and move that to its place beside it."""
    folder = parent / "model"
    pool = await opened_exporting(predictor, folder, given, start_timeout)
    try:
        signature = pool.signature
        assert signature is not None  # or it would not have been exported
        requests = requests_of(signature, given)
        expected = [await predict(pool, named_as(signature, rows)) for rows in requests]
    finally:
        await pool.aclose()
    answers = await saved_answers(folder, signature, requests, start_timeout)
    pairs = [
        (answer, named_output(each.outputs)) for answer, each in zip(answers, expected, strict=True)
    ]
    differences = [difference(answer, wanted) for answer, wanted in pairs]
    path = put_in_place(folder, parent.parent)
    return ExportResult(
        target=target,
        path=str(path),
        tensorflow=expected[0].tensorflow,
        signatures=SIGNATURES,
        features=exported_features(signature),
        outputs=outputs_of(answers[0], row_wise=has_rows(pairs, requests)),
        rows=tuple(map(row_count, requests)),
        own_rows=given is not None,
        max_difference=max(differences),
        left_behind=left_behind(signature, expected[0]),
        serve=serving(path.parent, signature),
    )


async def opened_exporting(
    predictor: EstimatorPredictor, folder: Path, given: Any, start_timeout: float
) -> PredictorPool[Answer]:
    """Return a pool whose worker has exported the model; it answers as the Estimator does."""
    exporting = ExportingPredictor(predictor, str(folder), given)
    try:
        return await opened(exporting, given, start_timeout)
    except CommandError as error:
        if "BoostedTrees" not in str(error):
            raise
        raise CommandError(
            f"{error}. TensorFlow removed boosted trees in 2.9, and no later version has their "
            "operations: a model of theirs cannot cross. Train another kind of model",
            details=error.details,
        ) from error


async def saved_answers(
    folder: Path, signature: Signature, requests: list[Arrays], start_timeout: float
) -> list[dict[str, Any]]:
    """Return what the SavedModel says, in a worker that has never seen the Estimator."""
    named = [{exported_name(name): rows[name] for name in rows} for rows in requests]
    saved = SavedModelPredictor(str(folder), **options_of(signature))
    try:
        pool = await opened(saved, named[0], start_timeout)
    except CommandError as error:
        raise CommandError(
            f"it was exported, but cannot be served: {error}", details=error.details
        ) from error
    try:
        return [named_output(await predict(pool, rows)) for rows in named]
    finally:
        await pool.aclose()


# --- requests and answers ----------------------------------------------------------


def requests_of(signature: Signature, given: Any) -> list[Arrays]:
    """Return rows in several counts, the given ones over and over, as the model gets them."""
    rows = signature.example() if given is None else signature.conform(given)
    counts = dict.fromkeys((*ROW_COUNTS, row_count(rows)))
    return [
        {name: values[np.arange(count) % len(values)] for name, values in rows.items()}
        for count in counts
        if row_count(rows)
    ]


def row_count(rows: Arrays) -> int:
    """Return how many rows there are."""
    return len(next(iter(rows.values())))


def named_as(signature: Signature, rows: Arrays) -> Any:
    """Return rows as the Estimator's callers give them."""
    return rows[UNNAMED] if signature.unnamed else rows


def named_output(outputs: Any) -> dict[str, Any]:
    """Return outputs by name."""
    return dict(outputs) if isinstance(outputs, Mapping) else {OUTPUT: outputs}


def difference(answer: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Return the largest difference between two floats.

    Raises:
        CommandError: the answers do not agree.
    """
    if set(answer) != set(wanted):
        raise disagreement("outputs", sorted(answer), sorted(wanted))
    largest = 0.0
    for name, values in wanted.items():
        given = answer[name]
        if (given.dtype, given.shape) != (values.dtype, values.shape):
            raise disagreement(name, form_of(given), form_of(values))
        if not agree(given, values):
            raise disagreement(name, *first_difference(given, values))
        if values.dtype.kind in "fc" and values.size:
            gap = np.abs(given.astype(np.float64) - values.astype(np.float64))
            largest = max(largest, float(np.nanmax(gap, initial=0.0)))
    return largest


def agree(given: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Whether two arrays of the same form have the same values."""
    if wanted.dtype.kind in "fc":
        return np.allclose(given, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    return np.array_equal(given, wanted)


def form_of(values: NDArray[Any]) -> str:
    """Return the dtype and the shape of an array."""
    return f"{values.dtype}{list(values.shape)}"


def first_difference(given: NDArray[Any], wanted: NDArray[Any]) -> tuple[Any, Any]:
    """Return the first two values that are not the same."""
    if wanted.dtype.kind in "fc":
        same = np.isclose(given, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    else:
        same = np.asarray(given == wanted)
    where = int(np.argmin(same))
    return given.flat[where], wanted.flat[where]


def disagreement(what: str, given: Any, wanted: Any) -> CommandError:
    """Return the error for a SavedModel that says something else."""
    return CommandError(
        f"the SavedModel does not say what the Estimator says, {what}: {given}, expected {wanted} "
        f"(floats within {TOLERANCE:g}). Nothing was written. A model that draws random numbers, "
        "counts its calls, or whose prediction_hooks change the answers cannot be exported"
    )


def has_rows(pairs: list[tuple[dict[str, Any], Any]], requests: list[Arrays]) -> bool:
    """Whether the first axis of every output is the row, in all requests."""
    return all(
        np.shape(values)[:1] == (row_count(rows),)
        for (answer, _), rows in zip(pairs, requests, strict=True)
        for values in answer.values()
    )


# --- where it goes, and how it is served -------------------------------------------


def put_in_place(folder: Path, out: Path) -> Path:
    """Rename the SavedModel to the next version: whoever looks sees all of it, or nothing."""
    versions = [int(entry.name) for entry in out.iterdir() if entry.name.isdecimal()]
    path = out / str(max(versions, default=0) + 1)
    try:
        return folder.rename(path)
    except OSError as error:
        raise CommandError(f"the SavedModel cannot be put in its place: {error}") from error


def exported_features(signature: Signature) -> tuple[Feature, ...]:
    """Describe what the SavedModel takes: names, dtypes and shapes are all that it knows."""
    bare = {exported_name(name): spec for name, spec in signature.features.items()}
    described = features_of(Signature(bare))
    assert described is not None
    return tuple(Feature(f.name, f.dtype, f.shape, ragged=f.ragged) for f in described)


def left_behind(signature: Signature, answer: Answer) -> tuple[str, ...]:
    """Say what the SavedModel does not do."""
    words = [
        f"the default of {name!r} ({plain(spec.default)!r}): every request has to have it"
        for name, spec in signature.features.items()
        if spec.default is not REQUIRED
    ]
    words += [f"the prediction hook {hook}: it is Python" for hook in answer.hooks]
    if signature.unnamed:
        words.append(f"features without a name: they are called {exported_name(UNNAMED)!r} now")
    return tuple(words)


def options_of(signature: Signature) -> dict[str, Any]:
    """Return the options that let `SavedModelPredictor` refuse no more than the Estimator did."""
    specs = {exported_name(name): spec for name, spec in signature.features.items()}
    missing = {name: s.missing for name, s in specs.items() if s.missing is not REQUIRED}
    allow_nan = [name for name, spec in specs.items() if spec.allow_nan]
    options: dict[str, Any] = {}
    if signature.extra != "refuse":
        options["extra"] = signature.extra
    if missing:
        options["missing"] = {name: plain(value) for name, value in missing.items()}
    if allow_nan:
        options["allow_nan"] = allow_nan
    return options


def serving(out: Path, signature: Signature) -> str:
    """Return the predictor that serves it, as Python."""
    options = "".join(f", {name}={value!r}" for name, value in options_of(signature).items())
    return f"SavedModelPredictor({str(out)!r}{options})"


# --- words -------------------------------------------------------------------------


def table(result: ExportResult) -> Group:
    """Render the result for people."""
    facts = Table.grid(padding=(0, 2))
    for fact, words in facts_of(result):
        facts.add_row(fact, escape(words))
    row_wise = all(output.shape is not None for output in result.outputs)
    tables = (features_table(result.features), outputs_table(result.outputs, row_wise))
    advice = Table.grid(padding=(0, 2))
    advice.add_row("serve it", escape(result.serve))
    advice.add_row("with", escape('pip install "predictpool[tensorflow]", on a current TensorFlow'))
    return Group(facts, *tables, advice)


def facts_of(result: ExportResult) -> Iterator[tuple[str, str]]:
    """Yield what there is to say besides the features and the outputs."""
    yield "exported", f"{result.target}, by TensorFlow {result.tensorflow}"
    yield "to", result.path
    yield "signatures", ", ".join(result.signatures)
    whose = "yours" if result.own_rows else "zeros and empty text; --features names better ones"
    yield "compared", f"requests of {', '.join(map(str, result.rows))} rows ({whose})"
    yield "difference", f"{result.max_difference:.1e} at most; all else equal"
    for words in result.left_behind:
        yield "left behind", words
