"""Transforms of tf.data in front of an Estimator: never another request's answer."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import EstimatorPredictor, PredictionError, PredictorPool, WorkerStartError
from tests import needs, pipelines
from tests.pipelines import NUMBERS, RIGHT, ROWS, WRONG

METHODS = ("generator", "session")

pytestmark = [needs.estimators, pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone: this is about what happens in the worker."""
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained model, requests and what it says of them."""
    folder = tmp_path_factory.mktemp("pipelines")
    subprocess.run([sys.executable, "-m", "tests.pipelines", str(folder)], check=True)
    return folder


def some(values: Any, rows: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: array[rows] for name, array in values.items()}
    return values[rows]


def open_pool(folder: Path, transform: Any, **options: Any) -> PredictorPool[Any]:
    warmup = options.pop("warmup", None)
    options.setdefault("signature", NUMBERS)
    predictor = EstimatorPredictor(partial(pipelines.build, folder), transform=transform, **options)
    return PredictorPool(predictor, workers=1, warmup=warmup)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RIGHT)
async def test_no_answer_is_stale(folder: Path, name: str, method: str) -> None:
    transform, signature = RIGHT[name]
    features, expected = pickle.loads((folder / "known").read_bytes())[name]

    async def ask(rows: slice) -> None:
        outputs = await pool.predict(some(features, rows))
        assert list(outputs) == list(expected)
        for key, array in expected.items():
            np.testing.assert_allclose(outputs[key], array[rows], rtol=2e-5, atol=2e-5)

    async with open_pool(
        folder, transform, method=method, signature=signature, warmup=some(features, slice(2))
    ) as pool:
        for turn, row in enumerate(range(0, ROWS - 3, 3)):
            await ask(slice(row, row + 1 + row % 3))
            # Not to wait for something: a pause is when tf.data pulls ahead.
            await anyio.sleep(0.002 * (turn % 3))
        async with anyio.create_task_group() as callers:
            for row in range(64):
                callers.start_soon(ask, slice(row, row + 1 + row % 5))


@pytest.mark.parametrize("name", ["two maps", "one thread"])
async def test_a_map_never_waits_for_the_generator(folder: Path, name: str) -> None:
    """On one core tf.data has one thread, and the generator, which waits in it, may keep it.

    About one request in a thousand waited for ever so.
    """
    transform, _ = RIGHT[name]
    rows = {"x": np.ones((1, pipelines.WIDTH), np.float32)}
    async with open_pool(folder, transform) as pool:
        for _ in range(3_000):
            await pool.predict(rows)


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_transform_is_an_error_at_the_start(folder: Path, name: str) -> None:
    transform, message = WRONG[name]
    with pytest.raises(WorkerStartError, match=re.escape(message)):
        async with open_pool(folder, transform):
            pass


async def test_a_wrong_transform_is_an_error_for_a_session_too(folder: Path) -> None:
    with pytest.raises(WorkerStartError, match="does not give back each request by itself"):
        async with open_pool(folder, pipelines.repeat_each, method="session"):
            pass


@pytest.mark.parametrize("method", METHODS)
async def test_a_request_that_the_transform_cannot_take_fails_alone(
    folder: Path, method: str
) -> None:
    transform, signature = RIGHT["parse_example"]
    features, expected = pickle.loads((folder / "known").read_bytes())["parse_example"]

    async def ask(row: int) -> None:
        outputs = await pool.predict(features[row : row + 1])
        np.testing.assert_allclose(outputs["sum"], expected["sum"][row : row + 1], rtol=2e-5)

    async def ask_wrongly() -> None:
        with pytest.raises(PredictionError, match="Could not parse example"):
            await pool.predict([b"no example"])

    async with open_pool(
        folder, transform, method=method, signature=signature, warmup=features[:1]
    ) as pool:
        async with anyio.create_task_group() as callers:
            for row in range(8):
                callers.start_soon(ask, row)
                if row == 3:
                    callers.start_soon(ask_wrongly)
        await ask(9)
        assert pool.statistics().restarts == 0


@pytest.mark.parametrize("method", METHODS)
async def test_no_rows_give_empty_arrays_behind_a_transform(folder: Path, method: str) -> None:
    async with open_pool(folder, pipelines.two_maps, method=method) as pool:
        outputs = await pool.predict({"x": np.empty((0, pipelines.WIDTH), np.float32)})
        assert {name: array.shape for name, array in outputs.items()} == {
            "weighted": (0, pipelines.WIDTH),
            "sum": (0,),
        }


def test_a_transform_needs_a_signature() -> None:
    with pytest.raises(ValueError, match="transform= needs signature=, that of the requests"):
        EstimatorPredictor(list, transform=pipelines.halved)
    with pytest.raises(TypeError, match="transform is 'map', expected a function that takes"):
        EstimatorPredictor(list, transform="map", signature=NUMBERS)  # type: ignore[arg-type]
