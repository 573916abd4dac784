"""SavedModels of Estimators, and what ``estimator.predict`` says of their rows.

Where TensorFlow has Estimators, ``python -m tests.exported write FOLDER NAME...`` trains some and
exports them. Any TensorFlow then answers: ``python -m tests.exported answer FOLDER`` loads what is
in the folder and prints, as JSON, how far each answer is from the recorded one. Both are processes
of their own, because an application never imports TensorFlow.
"""

from __future__ import annotations

import json
import pickle
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from predictpool import Device, EstimatorPredictor, SavedModelPredictor, Signature
from predictpool._export import difference, named_output
from predictpool.predictors._estimator_export import ExportingPredictor, exported_name
from tests import canned, models
from tests.answers import rows_of

NAMES = [*canned.MODELS, *models.MODELS]
CALLS = 200  # of one row, for the median


def saved_folder(folder: Path, name: str) -> Path:
    return folder / "saved" / name


# --- write -------------------------------------------------------------------------


def write(folder: Path, names: list[str]) -> None:
    """Train these models, export them, and write down what they say."""
    (folder / "saved").mkdir(parents=True)
    (folder / "models").mkdir()
    canned.train(folder, [name for name in names if name in canned.MODELS])
    if set(names) & set(models.MODELS):
        models.train(folder / "models")
    for name in names:
        exporting = ExportingPredictor(
            predictor_of(folder, name), str(saved_folder(folder, name) / "1"), None
        )
        exporting.load(Device("cpu"))
        assert isinstance(exporting.signature, Signature)
        record = [
            ({exported_name(key): values for key, values in rows.items()}, named_output(answer))
            for rows, answer in answers_of(folder, name, exporting.signature)
        ]
        (folder / "saved" / f"{name}.record").write_bytes(pickle.dumps(record))


def predictor_of(folder: Path, name: str) -> EstimatorPredictor:
    if name in models.MODELS:
        build, _, signature = models.MODELS[name]
        return EstimatorPredictor(partial(build, folder / "models"), signature=signature)
    model = canned.MODELS[name]
    return EstimatorPredictor(
        partial(model.build, folder),
        signature=model.signature,
        checkpoint_path=canned.checkpoint_of(model, folder),
    )


def answers_of(folder: Path, name: str, signature: Signature) -> list[tuple[Any, Any]]:
    """Return the rows of each request, as the model gets them, and what the Estimator said."""
    if name in models.MODELS:
        features, _ = models.MODELS[name][1]()
        expected = pickle.loads((folder / "models" / f"{name}.expected").read_bytes())
        return [(signature.conform(features), expected)]
    features, answers, _ = pickle.loads((folder / f"{name}.expected").read_bytes())
    requests = [rows_of(features, rows) for rows in (*canned.ALONE, *canned.TOGETHER)]
    return [
        (signature.conform(rows), answer) for rows, answer in zip(requests, answers, strict=True)
    ]


# --- answer ------------------------------------------------------------------------


def answer(folder: Path, names: list[str]) -> dict[str, Any]:
    """Load these SavedModels, ask each for its rows, and tell how far it is from its record.

    Returns:
        name → method, largest difference, seconds to load, and median seconds for one row; or
        ``"error"``.
    """
    return {name: outcome(folder, name) for name in names}


def outcome(folder: Path, name: str) -> dict[str, Any]:
    record = pickle.loads((folder / "saved" / f"{name}.record").read_bytes())
    began = time.perf_counter()
    predictor = SavedModelPredictor(str(saved_folder(folder, name)))
    try:
        predictor.load(Device("cpu"))
        assert isinstance(predictor.signature, Signature)
        answers = [
            named_output(predictor.predict(predictor.signature.conform(rows))) for rows, _ in record
        ]
        load_seconds = time.perf_counter() - began
        differences = [
            difference(said, wanted) for said, (_, wanted) in zip(answers, record, strict=True)
        ]
        one = {key: values[:1] for key, values in record[0][0].items()}
        p50_seconds = median_seconds(predictor, predictor.signature.conform(one))
    except Exception as error:  # noqa: BLE001 - it is what the test has to show
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        predictor.close()
    return {
        "method": predictor.method,
        "max_difference": max(differences),
        "load_seconds": load_seconds,
        "p50_seconds": p50_seconds,
    }


def median_seconds(predictor: Any, features: Any) -> float:
    """Return the median of one call in this process, without a pool."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        predictor.predict(features)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


if __name__ == "__main__":
    command, path, *chosen = sys.argv[1:]
    if command == "write":
        write(Path(path), chosen)
    else:
        print(json.dumps(answer(Path(path), chosen)))
