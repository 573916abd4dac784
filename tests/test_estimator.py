"""What an EstimatorPredictor promises, on real Estimators in real workers."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from predictpool import (
    Device,
    EstimatorPredictor,
    InvalidFeatures,
    PredictionError,
    Predictor,
    PredictorPool,
    WorkerStartError,
)
from tests import models, needs
from tests.answers import METHODS, assert_close, assert_equal_outputs, rows_of
from tests.models import ROWS, Features
from tests.stage import Stage

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
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-m", "tests.models", str(folder)], check=True)
    return folder


def predictor(folder: Path, name: str, method: Any = "generator", **options: Any) -> Any:
    build, _, signature = models.MODELS[name]
    options.setdefault("signature", signature)
    return EstimatorPredictor(partial(build, folder), method=method, **options)


def open_pool(
    folder: Path, name: str, method: Any = "generator", *, workers: int = 1, **options: Any
) -> PredictorPool[Any]:
    # The custom model reads numbers from text, so the empty text of a warm-up of our own fails.
    warmup = rows_of(models.custom_rows()[0], slice(2)) if name == "custom" else None
    return PredictorPool(predictor(folder, name, method, **options), workers=workers, warmup=warmup)


class Known:
    """The rows of a model, and what ``estimator.predict`` says of them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.features: Features = models.MODELS[name][1]()[0]
        self.expected = pickle.loads((folder / f"{name}.expected").read_bytes())

    async def check(self, pool: PredictorPool[Any], rows: slice) -> None:
        outputs = await pool.predict(rows_of(self.features, rows))
        assert_equal_outputs(outputs, rows_of(self.expected, rows))


# --- the same answers as estimator.predict -----------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", models.MODELS)
async def test_answers_equal_estimator_predict(trained: Path, name: str, method: str) -> None:
    known = Known(trained, name)
    async with open_pool(trained, name, method) as pool:
        for start, size in ((0, 1), (1, 2), (3, 7), (10, 64), (0, ROWS), (74, 1), (75, 33)):
            await known.check(pool, slice(start, start + size))
        async with anyio.create_task_group() as callers:
            for start in range(0, ROWS, 3):
                callers.start_soon(known.check, pool, slice(start, start + 1 + start % 5))


async def test_predict_one_has_no_row_axis(trained: Path) -> None:
    known = Known(trained, "regressor")
    async with open_pool(trained, "regressor") as pool:
        for row in range(5):
            assert isinstance(known.features, dict)
            example = {name: values[row] for name, values in known.features.items()}
            outputs = await pool.predict_one(example)
            assert outputs["predictions"].shape == (1,)
            expected = known.expected["predictions"][row]
            assert_close(outputs["predictions"], expected)


async def test_python_lists_are_as_good_as_arrays(trained: Path) -> None:
    known = Known(trained, "classifier")
    assert isinstance(known.features, dict)
    async with open_pool(trained, "classifier") as pool:
        lists = {name: values[:9].tolist() for name, values in known.features.items()}
        assert_equal_outputs(await pool.predict(lists), rows_of(known.expected, slice(9)))


# --- never the answer of another request -------------------------------------------


async def ask_for_distinct_rows(pool: PredictorPool[Any], known: Known, callers: int) -> None:
    """Ask for different rows, in batches of three sizes with pauses; check every answer."""
    await known.check(pool, slice(0, 1))
    for size in (1, 3, 16):
        starts = [(13 * turn) % (ROWS - size) for turn in range(max(24, callers))]
        if callers == 1:
            for turn, start in enumerate(starts):
                await known.check(pool, slice(start, start + size))
                # Not to wait for something: a pause is when tf.data pulls ahead.
                await anyio.sleep(0.002 * (turn % 3))
        else:
            async with anyio.create_task_group() as group:
                for start in starts:
                    group.start_soon(known.check, pool, slice(start, start + size))


@pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"), "trio"],
)
@pytest.mark.parametrize("method", METHODS)
async def test_no_answer_is_stale(
    anyio_backend: object,  # noqa: ARG001 - read by anyio's plugin
    trained: Path,
    method: str,
) -> None:
    known = Known(trained, "classifier")
    async with open_pool(trained, "classifier", method, workers=2) as pool:
        await pool.wait_ready()
        for callers in (1, 64):
            await ask_for_distinct_rows(pool, known, callers)


async def test_the_published_generator_is_stale_and_is_found_out(trained: Path) -> None:
    known = Known(trained, "classifier")
    published: Any = models.ReyieldingPredictor(partial(models.build_classifier, trained))
    async with PredictorPool(published, workers=1) as pool:
        with pytest.raises(AssertionError):
            await ask_for_distinct_rows(pool, known, 1)


# --- loaded once -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_ten_thousand_calls_build_one_graph_in_flat_memory(
    trained: Path, method: str
) -> None:
    journal = trained / "custom.journal"
    journal.unlink(missing_ok=True)
    known = Known(trained, "custom")
    async with open_pool(trained, "custom", method) as pool:
        one, two = rows_of(known.features, slice(1)), rows_of(known.features, slice(2))
        for _ in range(1_000):
            await pool.predict(one)
        before = worker_memory()
        for call in range(9_000):
            await pool.predict(two if call % 9 == 0 else one)
        growth = worker_memory() - before
        assert pool.statistics().answered == 10_000
    assert journal.read_text().split().count("graph") == 1
    assert growth < 4_000_000


def worker_memory() -> int:
    """The memory that this application's workers have to themselves, in bytes."""
    template = [child for child in psutil.Process().children() if is_template(child)]
    workers = [worker for process in template for worker in process.children()]
    return sum(worker.memory_full_info().uss for worker in workers)


def is_template(process: psutil.Process) -> bool:
    return any("_template.py" in part for part in process.cmdline())


@pytest.mark.parametrize("method", METHODS)
async def test_hooks_are_run_to_their_end(trained: Path, method: str) -> None:
    journal = trained / "custom.journal"
    journal.unlink(missing_ok=True)
    async with open_pool(trained, "custom", method):
        assert journal.read_text().split().count("begin") == 1
    assert journal.read_text().split()[-1] == "end"


# --- a bad request -----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_only_the_guilty_request_fails(trained: Path, method: str) -> None:
    journal = trained / "custom.journal"
    journal.unlink(missing_ok=True)
    known = Known(trained, "custom")
    assert isinstance(known.features, dict)
    poison = {"x": known.features["x"][:1], "text": [b"no number"]}
    refused: list[PredictionError] = []

    async def poisonous() -> None:
        with pytest.raises(PredictionError) as caught:
            await pool.predict(poison)
        refused.append(caught.value)

    async with open_pool(trained, "custom", method) as pool:
        async with anyio.create_task_group() as callers:
            for row in range(12):
                callers.start_soon(known.check, pool, slice(row, row + 1))
                if row == 7:
                    callers.start_soon(poisonous)
        await known.check(pool, slice(20, 30))
        statistics = pool.statistics()
    assert (statistics.answered, statistics.failed, statistics.restarts) == (13, 1, 0)
    assert refused[0].type_name.endswith("InvalidArgumentError")
    assert "no number" in str(refused[0])
    assert "tensorflow" not in sys.modules
    graphs = journal.read_text().split().count("graph")
    # A session is not hurt; a generator is rebuilt after each failure, while the batch is
    # halved until the guilty one is alone.
    assert graphs == 1 if method == "session" else 2 <= graphs <= 6


def with_value(name: str, *values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda features: features.update({name: list(values)})


# Of the custom model: x is float32 rows of 5, text is text.
BAD_FEATURES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("missing", lambda f: f.pop("x"), r"feature 'x' is missing: .*expected float32 rows"),
    ("near miss", lambda f: f.update(tekst=f.pop("text")), r"'text' is missing: .*it by 'tekst'\?"),
    ("unknown", lambda f: f.update(text_=["1"] * 2), r"'text_' is unknown: .*mean 'text'\?"),
    ("lengths", with_value("text", "1"), r"differ in their number of rows \(.*text: 1"),
    ("rank", lambda f: f.update(x=np.ones((2, 5, 1))), r"'x' has the shape \(2, 5, 1\)"),
    ("width", lambda f: f.update(x=np.ones((2, 4))), r"'x' has the shape \(2, 4\)"),
    ("ragged", with_value("x", [1.0], [1.0, 2.0]), r"feature 'x' "),
    ("no rows", lambda f: f.update(text="1"), r"feature 'text' "),
    ("text for numbers", with_value("x", ["1"] * 5, ["2"] * 5), r"feature 'x' has text"),
    ("number for text", with_value("text", 1, 2), r"feature 'text' has the value 1 of type int"),
    ("None", with_value("text", "1", None), r"feature 'text' .*None.*missing"),
    ("None for a number", with_value("x", [1.0] * 5, [None] * 5), r"feature 'x' .*None.*missing"),
    (
        "NaN",
        lambda f: f.update(x=np.full((2, 5), np.nan, "f4")),
        r"feature 'x' .*(NaN|nan).*allow_nan",
    ),
    ("NaN for text", with_value("text", "1", float("nan")), r"feature 'text' .*nan"),
    (
        "too large",
        with_value("x", [1e300] * 5, [1.0] * 5),
        r"value 1e\+300 in row 0, which float32 cannot",
    ),
    ("rounded", with_value("x", [2**53 + 1] * 5, [1] * 5), r"which float32 cannot hold exactly"),
    (
        "beyond int64",
        with_value("x", [2**70 + 1] * 5, [1] * 5),
        r"which float32 cannot hold exactly",
    ),
    ("lone surrogate", with_value("text", "1", "\udc80"), r"feature 'text' .*surrogate"),
    ("complex", lambda f: f.update(x=np.ones((2, 5), complex)), r"feature 'x' has complex128"),
    ("dates", lambda f: f.update(x=np.zeros((2, 5), "M8[s]")), r"feature 'x' has datetime64"),
]


@pytest.mark.parametrize("method", METHODS)
async def test_bad_features_are_refused_and_the_same_session_answers_the_next(
    trained: Path, method: str
) -> None:
    journal = trained / "custom.journal"
    journal.unlink(missing_ok=True)
    known = Known(trained, "custom")
    async with open_pool(trained, "custom", method) as pool:
        for _, spoil, message in BAD_FEATURES:
            features = rows_of(known.features, slice(2))
            spoil(features)
            with pytest.raises(InvalidFeatures, match=message):
                await pool.predict(features)
            await known.check(pool, slice(0, 2))
        with pytest.raises(InvalidFeatures, match="expected a mapping of name to values"):
            await pool.predict([1.0, 2.0])
        statistics = pool.statistics()
    assert statistics.batches == statistics.answered == len(BAD_FEATURES)
    assert statistics.failed == len(BAD_FEATURES) + 1
    assert journal.read_text().split().count("graph") == 1


async def test_a_csv_row_with_holes(trained: Path) -> None:
    known = Known(trained, "classifier")
    assert isinstance(known.features, dict)
    holes: dict[str, Any] = {name: values[:2].tolist() for name, values in known.features.items()}
    filled = {**holes, "age": [40.0, 40.0], "occupation": ["", ""]}
    holes.update(age=[None, float("nan")], occupation=[None, float("nan")], fnlwgt=[1, 2])
    missing = {"age": 40.0, "occupation": ""}
    async with open_pool(trained, "classifier", extra="ignore", missing=missing) as pool:
        assert_equal_outputs(await pool.predict(holes), await pool.predict(filled))
    async with open_pool(trained, "classifier", allow_nan=["age"]) as pool:
        del holes["fnlwgt"]
        holes.update(age=np.full(2, np.nan), occupation=["", ""])
        outputs = await pool.predict(holes)
        assert outputs["probabilities"].shape == (2, 2)  # plausible, as it is with TensorFlow
        with pytest.raises(InvalidFeatures, match=r"feature 'education_num' .*allow_nan"):
            await pool.predict({**holes, "education_num": np.full(2, np.nan, np.float32)})


async def test_what_is_said_of_a_signature_needs_one(trained: Path) -> None:
    with pytest.raises(WorkerStartError, match="need a signature, and this estimator has no"):
        await open_and_close(predictor(trained, "custom", signature=None, extra="ignore"))
    with pytest.raises(WorkerStartError, match=r"missing names the feature 'agee'.*mean 'age'"):
        await open_and_close(predictor(trained, "classifier", missing={"agee": 1.0}))


# --- the signature -----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_signature_is_inferred_once_from_the_first_request(
    trained: Path, method: str
) -> None:
    known = Known(trained, "array")
    async with open_pool(trained, "array", method, workers=2, signature=None) as pool:
        await pool.wait_ready()
        assert isinstance(known.features, np.ndarray)
        with pytest.raises(InvalidFeatures, match=r"dtype int64.*signature="):
            await pool.predict([[1, 2, 3]])
        # What the model refuses settles nothing.
        with pytest.raises(ValueError, match="Dimensions must be equal"):
            await pool.predict(np.ones((1, 7)))
        await known.check(pool, slice(0, 5))
        await known.check(pool, slice(5, 40))
        outputs = await pool.predict(known.features[:4].astype(np.float64).tolist())
        assert_equal_outputs(outputs, known.expected[:4])
        np.testing.assert_allclose(
            await pool.predict([[1, 2, 3]]), await pool.predict([[1.0, 2, 3]])
        )
        with pytest.raises(InvalidFeatures, match=r"shape \(1, 2\), expected .* \(3,\)"):
            await pool.predict([[1.0, 2.0]])


async def test_signature_is_inferred_from_the_warm_up(trained: Path) -> None:
    known = Known(trained, "custom")
    async with open_pool(trained, "custom", signature=None) as pool:
        with pytest.raises(InvalidFeatures, match="feature 'text' is missing"):
            await pool.predict({"x": np.ones((1, 5))})
        await known.check(pool, slice(0, 5))


async def test_defaults_of_a_canned_estimator_fill_in(trained: Path) -> None:
    known = Known(trained, "regressor")
    assert isinstance(known.features, dict)
    async with open_pool(trained, "regressor") as pool:
        rows = rows_of(known.features, slice(3))
        given = await pool.predict({**rows, "number": [0.5, 0.5, 0.5]})
        del rows["number"]
        assert_equal_outputs(await pool.predict(rows), given)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["classifier", "custom", "array"])
async def test_zero_rows_give_empty_arrays(trained: Path, name: str, method: str) -> None:
    known = Known(trained, name)
    async with open_pool(trained, name, method) as pool:
        outputs = await pool.predict(rows_of(known.features, slice(0)))
        assert_equal_outputs(outputs, rows_of(known.expected, slice(0)))
        await known.check(pool, slice(0, 2))


# --- options -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_predict_keys(trained: Path, method: str) -> None:
    known = Known(trained, "classifier")
    keys = ["class_ids", "probabilities"]
    async with open_pool(trained, "classifier", method, predict_keys=keys) as pool:
        outputs = await pool.predict(rows_of(known.features, slice(4)))
    assert sorted(outputs) == keys
    for key in keys:
        assert_close(outputs[key], known.expected[key][:4])


async def test_a_model_that_is_not_row_wise_answers_each_request_alone(trained: Path) -> None:
    known = Known(trained, "array")
    async with open_pool(trained, "array", row_wise=False) as pool:
        async with anyio.create_task_group() as callers:
            for row in range(12):
                callers.start_soon(known.check, pool, slice(row, row + 1))
        assert pool.statistics().batches == 12


@pytest.mark.parametrize("method", METHODS)
async def test_unknown_predict_keys_are_an_error(trained: Path, method: str) -> None:
    keys = ["probabilities", "probability"]
    with pytest.raises(WorkerStartError, match=r"predict_keys names \['probability'\]; this model"):
        await open_and_close(predictor(trained, "classifier", method, predict_keys=keys))


@pytest.mark.parametrize("method", METHODS)
async def test_checkpoint_path(trained: Path, method: str) -> None:
    known = Known(trained, "regressor")
    first = str(trained / "regressor" / "model.ckpt-0")
    async with open_pool(trained, "regressor", method, checkpoint_path=first) as pool:
        outputs = await pool.predict(rows_of(known.features, slice(3)))
    difference = np.abs(outputs["predictions"] - known.expected["predictions"][:3])
    assert difference.max() > 1e-3  # the weights of before the training


@pytest.mark.parametrize("method", METHODS)
async def test_a_reload_takes_the_newest_checkpoint(
    trained: Path, tmp_path: Path, method: str
) -> None:
    known = Known(trained, "regressor")
    shutil.copytree(trained / "regressor", tmp_path / "regressor")
    newest = tmp_path / "regressor" / "checkpoint"  # where TensorFlow writes which one it is
    newest.write_text('model_checkpoint_path: "model.ckpt-0"\n')
    async with open_pool(tmp_path, "regressor", method) as pool:
        before = await pool.predict(rows_of(known.features, slice(3)))
        assert np.abs(before["predictions"] - known.expected["predictions"][:3]).max() > 1e-3
        newest.write_text('model_checkpoint_path: "model.ckpt-60"\n')
        await pool.reload()
        await known.check(pool, slice(3))


class Telling(EstimatorPredictor):
    """Tells the options of its sessions."""

    def __init__(self, stage: Stage, build: Callable[[], Any], **options: Any) -> None:
        super().__init__(build, **options)
        self._stage = stage

    def load(self, device: Device) -> None:
        super().load(device)
        assert self._checkpoint is not None
        config = self._checkpoint.estimator.config.session_config
        threads = (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads)
        self._stage.say((device.threads, *threads, config.device_count["CPU"]))


@pytest.mark.parametrize("method", METHODS)
async def test_a_session_config_is_respected_but_for_its_threads(
    trained: Path, method: str, stage: Stage
) -> None:
    known = Known(trained, "array")

    def build() -> Any:
        import tensorflow as tf

        estimator = models.build_array(trained)
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=7, inter_op_parallelism_threads=5, device_count={"CPU": 2}
        )
        return tf.estimator.Estimator(
            estimator._model_fn,
            config=estimator.config.replace(session_config=config),
            model_dir=estimator.model_dir,
        )

    telling = Telling(stage, build, method=method, signature=models.MODELS["array"][2])
    async with PredictorPool(telling, workers=1) as pool:
        await known.check(pool, slice(5))
    assert stage.heard() == [[1, 1, 1, 2]]


# --- what cannot be loaded ---------------------------------------------------------


async def open_and_close(broken: Predictor[Any], **options: Any) -> None:
    async with PredictorPool(broken, workers=1, **options):
        pass


@pytest.mark.parametrize("method", METHODS)
async def test_an_untrained_model_is_an_error(tmp_path: Path, method: str) -> None:
    with pytest.raises(WorkerStartError, match=f"no checkpoint in model_dir='{tmp_path}") as caught:
        await open_and_close(predictor(tmp_path, "regressor", method))
    assert "_find_checkpoint" in caught.value.traceback


async def test_a_predict_of_its_own_is_called_or_the_method_is_an_error(trained: Path) -> None:
    known = Known(trained, "array")
    build = partial(models.build_doubling, trained)
    signature = models.MODELS["array"][2]
    doubling = EstimatorPredictor(build, signature=signature)
    async with PredictorPool(doubling, workers=1) as pool:
        assert_equal_outputs(await pool.predict(known.features), 2 * known.expected)
    broken = EstimatorPredictor(build, method="session", signature=signature)
    with pytest.raises(WorkerStartError, match=r"Doubling has a predict\(\) of its own \(tests\."):
        await open_and_close(broken)


async def test_a_missing_checkpoint_is_an_error(trained: Path) -> None:
    with pytest.raises(WorkerStartError, match="there is no such checkpoint"):
        await open_and_close(predictor(trained, "regressor", checkpoint_path="nowhere/model.ckpt"))


@pytest.mark.parametrize("method", METHODS)
async def test_a_failing_warm_up_says_what_to_do(trained: Path, method: str) -> None:
    # Without `warmup` it is the empty text that the custom model cannot take for a number.
    with pytest.raises(WorkerStartError, match=r"the warm-up failed .* give the pool warmup="):
        await open_and_close(predictor(trained, "custom", method))


FAKE_TENSORFLOW = {
    "missing": (
        "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')",
        r'TensorFlow is not installed: pip install "predictpool\[estimator\]"',
    ),
    "too new": (
        "__version__ = '2.21.0'",
        r"TensorFlow 2\.21\.0 has no Estimators, 2\.15 was the last\. .*`predictpool export ",
    ),
}


@pytest.mark.parametrize("case", FAKE_TENSORFLOW)
async def test_tensorflow_that_cannot_do_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, message = FAKE_TENSORFLOW[case]
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.CRITICAL), pytest.raises(WorkerStartError, match=message):
        await open_and_close(EstimatorPredictor(lambda: None))


BAD_OPTIONS: Sequence[tuple[Callable[[], Any], type[Exception], str]] = (
    (lambda: EstimatorPredictor("model"), TypeError, "build is 'model', expected a function"),  # type: ignore[arg-type]
    (
        lambda: EstimatorPredictor(list, method="fast"),  # type: ignore[arg-type]
        ValueError,
        "method is 'fast', expected 'generator' or 'session'",
    ),
    (
        lambda: EstimatorPredictor(list, predict_keys="logits"),
        TypeError,
        "predict_keys is 'logits', expected a list of names",
    ),
    (
        lambda: EstimatorPredictor(list, signature={"x": (1, 2, 3, 4)}),
        TypeError,
        "signature of feature 'x' is (1, 2, 3, 4)",
    ),
)


@pytest.mark.parametrize(("make", "error", "message"), BAD_OPTIONS)
def test_bad_options_are_named(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()
