"""Every Estimator of TensorFlow 2.12 to 2.15: a pool says what `estimator.predict` says."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from predictpool import (
    EstimatorPredictor,
    PredictionError,
    PredictorPool,
    Signature,
    WorkerStartError,
)
from tests import canned, needs
from tests.answers import METHODS, assert_equal_outputs, rows_of
from tests.canned import ALONE, MODELS, TOGETHER
from tests.mutations import ROOT

pytestmark = [
    needs.estimators,
    pytest.mark.anyio,
    pytest.mark.timeout(300),  # TensorFlow on a busy machine
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run on asyncio alone, and in one event loop: that of the pools."""
    return "asyncio"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with the models that the selected tests need, trained, and what they predict."""
    folder = tmp_path_factory.mktemp("canned")
    wanted = {
        item.callspec.params.get("name")
        for item in request.session.items
        if hasattr(item, "callspec")
    }
    names = [name for name in MODELS if name in wanted]
    subprocess.run([sys.executable, "-m", "tests.canned", str(folder), *names], check=True)
    return folder


class Known:
    """The rows of a model, and what ``estimator.predict`` says of them."""

    def __init__(self, folder: Path, name: str) -> None:
        record = pickle.loads((folder / f"{name}.expected").read_bytes())
        self.features, answers, self.derived = record
        self._answers = dict(zip(map(str, (*ALONE, *TOGETHER)), answers, strict=True))

    def answer(self, rows: slice) -> Any:
        return self._answers[str(rows)]

    async def check(self, pool: PredictorPool[Any], rows: slice) -> None:
        outputs = await pool.predict(rows_of(self.features, rows))
        assert_equal_outputs(outputs, self.answer(rows))


def predictor(folder: Path, name: str, method: Any, **options: Any) -> EstimatorPredictor:
    model = MODELS[name]
    return EstimatorPredictor(
        partial(model.build, folder),
        method=method,
        signature=model.signature,
        checkpoint_path=canned.checkpoint_of(model, folder),
        **options,
    )


# --- the same answers as estimator.predict -----------------------------------------


def signature_of(folder: Path, name: str) -> Signature:
    return Signature.declared(MODELS[name].signature or Known(folder, name).derived)


class Pools:
    """One pool for each signature, which is reloaded with one model after another.

    It has imported TensorFlow once, and with a reload no request is ever in two models.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, PredictorPool[Any]] = {}

    async def serving(self, name: str, method: str, **options: Any) -> PredictorPool[Any]:
        """Return a pool that predicts with this model."""
        model = MODELS[name]
        recipe = predictor(self._folder, name, method, **options)
        # A pool that has once met outputs that are not row by row never joins requests again.
        key = str(signature_of(self._folder, name)) if model.row_wise else name
        if key in self._open:
            await self._open[key].reload(recipe)
        else:
            pool: PredictorPool[Any] = PredictorPool(recipe, workers=1)
            await pool.open()
            self._open[key] = pool
        return self._open[key]

    async def aclose(self) -> None:
        for pool in self._open.values():
            await pool.aclose()


@pytest.fixture(scope="module")
async def pools(trained: Path) -> AsyncIterator[Pools]:
    """Pools that serve for all tests of this module."""
    pools = Pools(trained)
    yield pools
    await pools.aclose()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
async def test_answers_equal_estimator_predict(
    pools: Pools, trained: Path, name: str, method: str
) -> None:
    known = Known(trained, name)
    pool = await pools.serving(name, method)
    for rows in ALONE:
        await known.check(pool, rows)
    async with anyio.create_task_group() as callers:
        for rows in TOGETHER:
            callers.start_soon(known.check, pool, rows)


@pytest.mark.parametrize("name", MODELS)
def test_signatures_are_derived_where_the_documentation_says_so(trained: Path, name: str) -> None:
    derived, declared = Known(trained, name).derived, MODELS[name].signature
    if declared is None:
        assert isinstance(derived, Signature)
    else:
        assert str(derived) != str(Signature.declared(declared))


def test_the_documentation_has_the_list() -> None:
    page = (ROOT / "docs" / "reference" / "estimators.md").read_text()
    assert canned.table() in page
    assert canned.refusals() in page


# --- what is particular to one of them ---------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.row_wise])
async def test_a_model_whose_outputs_are_not_row_by_row_answers_each_request_alone(
    trained: Path, name: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = Known(trained, name)
    async with PredictorPool(predictor(trained, name, method), workers=1) as pool:
        async with anyio.create_task_group() as callers:
            for rows in TOGETHER:
                callers.start_soon(known.check, pool, rows)
        assert pool.statistics().batches == len(TOGETHER)
    assert "every request runs as a call of its own" in caplog.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["multi_head"])
async def test_predict_keys_of_a_multi_head(
    pools: Pools, trained: Path, name: str, method: str
) -> None:
    known = Known(trained, name)
    keys = ["count/predictions", ("labels", "classes")]
    pool = await pools.serving(name, method, predict_keys=keys)
    outputs = await pool.predict(rows_of(known.features, ALONE[2]))
    wanted = ["labels/classes", "count/predictions"]
    expected = {key: known.answer(ALONE[2])[key] for key in wanted}
    assert_equal_outputs(outputs, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["hooks"])
async def test_what_prediction_hooks_hear(trained: Path, name: str, method: str) -> None:
    known, journal = Known(trained, name), trained / "hooks.journal"
    journal.unlink(missing_ok=True)
    async with PredictorPool(predictor(trained, name, method), workers=1) as pool:
        await known.check(pool, ALONE[1])
    heard = journal.read_text().split()
    assert heard[:2] == ["begin", "after_create_session"]
    assert heard[-1] == "end"
    each_run = heard[2:-1]
    if method == "generator":  # twice for the warm-up, once for the request, and for the end
        assert each_run == ["before_run", "after_run"] * 3 + ["before_run"]
    else:
        assert each_run == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["rnn_classifier"])
async def test_nothing_but_empty_sequences_is_an_error_that_hurts_no_other_request(
    pools: Pools, trained: Path, name: str, method: str
) -> None:
    known = Known(trained, name)
    (empty,) = (row for row, words in enumerate(known.features["words"]) if not words)
    pool = await pools.serving(name, method)
    with pytest.raises(PredictionError) as caught:
        await pool.predict(rows_of(known.features, slice(empty, empty + 1)))
    assert caught.value.type_name.endswith("InvalidArgumentError")
    await known.check(pool, ALONE[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", canned.REFUSED)
async def test_what_cannot_be_loaded_says_why(tmp_path: Path, name: str, method: Any) -> None:
    refused = canned.REFUSED[name]
    broken = EstimatorPredictor(
        partial(refused.build, tmp_path), method=method, signature=canned.NUMBER
    )
    with pytest.raises(WorkerStartError, match=re.escape(refused.message)):
        async with PredictorPool(broken, workers=1):
            pass
