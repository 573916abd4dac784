"""Estimators of public programs, in the pool: the answers of ``estimator.predict``."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import EstimatorPredictor, PredictorPool
from tests import needs, programs
from tests.answers import METHODS, assert_equal_outputs, rows_of
from tests.programs import PROGRAMS, ROWS

pytestmark = [
    needs.estimators,
    pytest.mark.anyio,
    pytest.mark.timeout(300),  # TensorFlow on a busy machine
]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone where the event loop does not matter: a model takes seconds to load."""
    return "asyncio"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained models and their expected predictions."""
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run([sys.executable, "-m", "tests.programs", str(folder)], check=True)
    return folder


def open_pool(folder: Path, name: str, method: Any) -> PredictorPool[Any]:
    program = PROGRAMS[name]
    predictor = EstimatorPredictor(
        partial(program.build, folder), method=method, signature=program.signature
    )
    return PredictorPool(predictor, workers=1)


class Known:
    """Rows of a program, and what ``estimator.predict`` says of them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.features, self.expected = pickle.loads((folder / f"{name}.known").read_bytes())
        self.difference = 0.0

    async def check(self, pool: PredictorPool[Any], rows: slice) -> None:
        outputs = await pool.predict(rows_of(self.features, rows))
        expected = rows_of(self.expected, rows)
        assert_equal_outputs(outputs, expected)
        self.difference = max(self.difference, largest_difference(outputs, expected))


def largest_difference(outputs: Any, expected: Any) -> float:
    if isinstance(expected, Mapping):
        return max(largest_difference(outputs[name], expected[name]) for name in expected)
    return float(np.abs(outputs - expected).max()) if expected.dtype.kind == "f" else 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PROGRAMS)
async def test_answers_equal_estimator_predict(
    trained: Path, name: str, method: str, record_property: Callable[[str, object], None]
) -> None:
    known = Known(trained, name)
    # A row of the ranking is a list; lists of different lengths cannot share a batch.
    others = [Known(trained, "shorter")] if name == "ranking" else []
    async with open_pool(trained, name, method) as pool:
        for start, size in ((0, 1), (1, 2), (3, 7), (10, 64), (0, ROWS), (74, 1)):
            await known.check(pool, slice(start, start + size))
        async with anyio.create_task_group() as callers:
            for start in range(ROWS - 4):
                for asked in (known, *others):
                    callers.start_soon(asked.check, pool, slice(start, start + 1 + start % 4))
    record_property("largest difference", known.difference)


def test_the_documentation_has_the_list() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "estimators.md").read_text()
    assert programs.table() in page
