"""What a KerasPredictor promises, on Keras 2 or 3, whichever is there, in real workers."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import (
    FeatureSpec,
    InvalidFeatures,
    KerasPredictor,
    Predictor,
    PredictorPool,
    Signature,
    WorkerStartError,
)
from tests import keras_failures, keras_models, needs
from tests.answers import assert_equal_outputs, rows_of
from tests.keras_models import MODELS, ROWS
from tests.pools import pids_of, until_replaced

pytestmark = [
    needs.tensorflow,
    pytest.mark.anyio,
    pytest.mark.timeout(300),  # TensorFlow on a busy machine
]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone where the event loop does not matter: a model takes time to load."""
    return "asyncio"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved models and what they said when they were called."""
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run([sys.executable, "-m", "tests.keras_models", str(folder)], check=True)
    return folder


def expected_of(saved: Path, name: str) -> Any:
    return pickle.loads((saved / f"{name}.expected").read_bytes())


def pool_of(model: Any, **options: Any) -> PredictorPool[Any]:
    return PredictorPool(KerasPredictor(model, **options), workers=1)


def tf_keras() -> Any:
    """Return Keras, in a worker."""
    import tensorflow as tf

    return tf.keras


class Known:
    """The rows of a model, and what it says of them when it is called directly."""

    def __init__(self, saved: Path, name: str) -> None:
        self.features = keras_models.features_of(name)
        self.expected = expected_of(saved, name)

    async def check(self, pool: PredictorPool[Any], rows: slice) -> None:
        outputs = await pool.predict(rows_of(self.features, rows))
        assert_equal_outputs(outputs, rows_of(self.expected, rows))


# --- the same answers as the model's -----------------------------------------------


SIGNATURES: dict[str, Any] = {
    "dense": (np.float32, (5,)),
    "sequential": (np.float32, (5,)),
    "sequential_fitted": (np.float32, (5,)),
    "image": (np.uint8, (None, None, 3)),
    "tokens": (np.int64, (None,)),
    "ragged": FeatureSpec(np.dtype(np.int64), ragged=True),
    "text": (str, ()),
    "labels": (np.int64, (2,)),
    "states": (np.float32, (3, 2)),
    "mapping": {"word": (str, (1,)), "age": (np.float32, (1,)), "code": (np.int64, (1,))},
    "lists": {"wide": (np.float32, (3,)), "deep": (np.float32, (2,))},
    "single_key": {"x": (np.float32, (3,))},
}


@pytest.mark.parametrize("name", MODELS)
async def test_inputs_and_answers_are_those_of_the_model(saved: Path, name: str) -> None:
    known = Known(saved, name)
    first, *others = [saved / f"{name}{suffix}" for suffix in MODELS[name].suffixes]
    pool = pool_of(first)
    assert pool.signature is None
    async with pool:
        await check_all(pool, known, name)
        for path in others:
            await pool.reload(KerasPredictor(path))
            await check_all(pool, known, name)
    assert "tensorflow" not in sys.modules
    assert "keras" not in sys.modules


async def check_all(pool: PredictorPool[Any], known: Known, name: str) -> None:
    """Ask for rows one request after another, and then many at once."""
    assert pool.signature == Signature.declared(SIGNATURES[name])
    for start, size in ((0, 1), (1, 2), (3, 7), (0, ROWS), (33, 64), (74, 1), (5, 0)):
        await known.check(pool, slice(start, start + size))
    async with anyio.create_task_group() as callers:
        for start in range(0, ROWS, 3):
            callers.start_soon(known.check, pool, slice(start, start + 1 + start % 5))
    (worker,) = pool.workers()
    assert worker.warning == ""


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True}), ("trio", {})])
async def test_64_callers_at_once_get_their_own_rows(
    anyio_backend: object,  # noqa: ARG001 - read by anyio's plugin
    saved: Path,
) -> None:
    known = Known(saved, "mapping")
    async with PredictorPool(KerasPredictor(saved / "mapping.keras"), workers=2) as pool:
        await pool.wait_ready()
        for size in (1, 3, 16):
            async with anyio.create_task_group() as callers:
                for caller in range(64):
                    start = 13 * caller % (ROWS - size)
                    callers.start_soon(known.check, pool, slice(start, start + size))


async def test_predict_one_has_no_row_axis(saved: Path) -> None:
    known = Known(saved, "mapping")
    async with pool_of(saved / "mapping.keras") as pool:
        example = {name: values[4] for name, values in known.features.items()}
        outputs = await pool.predict_one(example)
    assert_equal_outputs(outputs, {name: values[4] for name, values in known.expected.items()})


async def test_requests_of_another_length_have_calls_of_their_own(saved: Path) -> None:
    known = Known(saved, "tokens")
    async with pool_of(saved / "tokens.keras") as pool:
        short = [row[:3] for row in known.features]
        async with anyio.create_task_group() as callers:
            for row in range(0, ROWS, 7):
                callers.start_soon(known.check, pool, slice(row, row + 2))
                callers.start_soon(pool.predict, short[row : row + 2])
        assert (await pool.predict(short)).shape == (ROWS, 2)
        assert pool.statistics().failed == 0


async def test_bfloat16_becomes_float32_which_numpy_has() -> None:
    async with pool_of(lambda: keras_models.build_half(tf_keras())) as pool:
        outputs = await pool.predict(np.ones((3, 5)))
        (worker,) = pool.workers()
    assert (outputs.dtype, outputs.shape) == (np.float32, (3, 2))
    assert worker.warning == ""


async def test_outputs_in_others_have_their_keys_joined() -> None:
    async with pool_of(lambda: keras_models.build_nested(tf_keras())) as pool:
        outputs = await pool.predict(np.ones((3, 5)))
    shapes = {name: values.shape for name, values in outputs.items()}
    assert shapes == {"pair/0": (3, 1), "pair/1": (3, 2), "one": (3, 5)}


@pytest.mark.skipif(not needs.HAS_ESTIMATORS, reason="Keras 3 has no AutoGraph for its layers")
async def test_a_layer_may_be_written_for_autograph() -> None:
    async with pool_of(keras_models.build_branching) as pool:
        outputs = await pool.predict([[0.5, 2.0, 1.0], [3.0, -1.0, 0.0]])
    assert outputs.tolist() == [[0.5, 1.0, 1.0], [1.0, -1.0, 0.0]]


# --- what the model takes ----------------------------------------------------------


async def test_what_does_not_fit_is_refused_before_it_reaches_the_model(saved: Path) -> None:
    async with pool_of(saved / "mapping.keras") as pool:
        row = {"word": [["red"]], "age": [[1.0]], "code": [[1]]}
        with pytest.raises(InvalidFeatures, match="feature 'age' has None in row 0"):
            await pool.predict({**row, "age": [[None]]})
        with pytest.raises(InvalidFeatures, match="'a_word' is unknown"):
            await pool.predict({**row, "a_word": ["red"]})
        assert (await pool.predict(row))["score"].shape == (1, 1)


async def test_it_refuses_less_where_it_is_told_to(saved: Path) -> None:
    async with pool_of(saved / "mapping.keras", extra="ignore", missing={"age": 40.0}) as pool:
        row = {"word": [["red"]], "code": [[1]]}
        relaxed = await pool.predict({**row, "age": [[None]], "unused": [1]})
        assert_equal_outputs(relaxed, await pool.predict({**row, "age": [[40.0]]}))


async def test_nan_reaches_the_model_where_it_is_allowed(saved: Path) -> None:
    async with pool_of(saved / "sequential.keras", allow_nan=True) as pool:
        assert pool.signature == Signature.declared(
            FeatureSpec(np.dtype(np.float32), (5,), allow_nan=True)
        )
        assert np.isnan(await pool.predict([[np.nan] * 5])).all()


async def test_every_request_is_a_call_of_its_own_where_rows_are_not_independent(
    saved: Path,
) -> None:
    async with pool_of(saved / "sequential.keras", row_wise=False) as pool:
        (worker,) = pool.workers()
        assert not worker.row_wise


# --- loaded once, traced once ------------------------------------------------------


async def test_changing_numbers_of_rows_trace_the_model_once(saved: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    load = partial(keras_models.load_custom, saved / "custom.keras", journal)
    async with pool_of(load) as pool:
        rows = keras_models.numbers(np.random.default_rng(1))
        for size in range(1, 40):
            np.testing.assert_allclose(await pool.predict(rows[:size]), 2 * rows[:size])
    assert journal.read_text().split() == ["call"]


async def test_the_model_has_as_many_threads_as_its_device(saved: Path, tmp_path: Path) -> None:
    said = tmp_path / "threads"

    def load() -> Any:
        import tensorflow as tf

        threading = tf.config.threading
        said.write_text(
            f"{threading.get_intra_op_parallelism_threads()} "
            f"{threading.get_inter_op_parallelism_threads()}"
        )
        return tf.keras.models.load_model(saved / "dense.keras")

    async with pool_of(load):
        assert said.read_text() == "1 1"


async def test_workers_are_forked(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "predictpool"):
        async with PredictorPool(KerasPredictor(saved / "dense.keras"), workers=2) as pool:
            await pool.wait_ready()
    assert "started afresh" not in caplog.text


async def test_reload_takes_the_file_that_is_there_now(saved: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    shutil.copy(saved / "sequential.keras", model)
    first, second = Known(saved, "sequential"), Known(saved, "sequential_fitted")
    async with pool_of(model) as pool:
        await first.check(pool, slice(3))
        shutil.copy(saved / "sequential_fitted.keras", model)
        await first.check(pool, slice(3))
        await pool.reload()
        await second.check(pool, slice(3))


async def test_a_pool_that_watches_takes_the_next_file(saved: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    shutil.copy(saved / "sequential.keras", model)
    predictor = KerasPredictor(model)
    async with PredictorPool(predictor, workers=1, watch=0.05) as pool:
        before = pids_of(pool)
        shutil.copy(saved / "sequential_fitted.keras", model)
        await until_replaced(pool, before)
        await Known(saved, "sequential_fitted").check(pool, slice(3))


def test_it_is_a_predictor() -> None:
    predictor = KerasPredictor("model.keras")
    assert isinstance(predictor, Predictor)
    with pytest.raises(RuntimeError, match=r"^predict\(\) before load\(\)$"):
        predictor.predict([1.0])


# --- what cannot be loaded ---------------------------------------------------------

REGISTER = (
    "which Keras does not know: register it with @keras.saving.register_keras_serializable(), and "
    "give KerasPredictor a function that imports its module and returns "
    "keras.models.load_model(path)"
)
NO_FILE = "is damaged, or no file of Keras: it is neither a zip file nor HDF5, or ends early"
NOT_SAID = (
    "does not say what it takes: begin a Sequential with keras.Input(shape=...); for a subclass of "
    "Model, give KerasPredictor a function that returns keras.Model(inputs, model(inputs)), where "
    "inputs = keras.Input(shape=...)"
)
CANNOT = (
    "cannot load it (Could not deserialize class 'Model' because its parent module "
    "keras.of.another.day cannot be imported)"
)
EXPORT = "or save it as a SavedModel where it was written, for SavedModelPredictor"

# {0} is the folder, {1} the version of Keras.
FAILURES = {
    "missing": (
        f"FileNotFoundError: there is no file '{{0}}/missing.keras', seen from {Path.cwd()}"
    ),
    "saved_model": (
        "ValueError: '{0}/exported' is a SavedModel, expected a .keras or .h5 file: "
        "SavedModelPredictor loads it"
    ),
    "directory": "ValueError: '{0}/directory.keras' is a folder, expected a .keras or .h5 file",
    "suffix": (
        "ValueError: '{0}/model.tflite' has the suffix '.tflite', expected .keras or .h5, as "
        "model.save() writes them"
    ),
    "junk_keras": f"ValueError: '{{0}}/junk.keras' {NO_FILE}",
    "junk_h5": f"ValueError: '{{0}}/junk.h5' {NO_FILE}",
    "cut": f"ValueError: '{{0}}/cut.keras' {NO_FILE}",
    "weights": (
        "ValueError: '{0}/model.weights.h5' has weights alone: give KerasPredictor a "
        "function that builds the model, calls model.load_weights(path) and returns it"
    ),
    "custom_layer": f"ValueError: '{{0}}/custom.keras' has 'Scale', {REGISTER}",
    "custom_layer_h5": f"ValueError: '{{0}}/shift.h5' has 'Shift', {REGISTER}",
    "custom_function": f"ValueError: '{{0}}/function.keras' has 'threefold', {REGISTER}",
    "lambda_layer": (
        "ValueError: '{0}/lambda.keras' has a Lambda layer, which may run any code: if you "
        "trust the file, give KerasPredictor a function that returns "
        "keras.models.load_model(path, safe_mode=False)"
    ),
    "older_keras": (
        f"ValueError: '{{0}}/older.keras' was written by Keras 1.2.0, and Keras {{1}} "
        f"{CANNOT}: pip install tf_keras and set TF_USE_LEGACY_KERAS=1, {EXPORT}"
    ),
    "newer_keras": (
        f"ValueError: '{{0}}/newer.keras' was written by Keras 9.1.0, and Keras {{1}} "
        f"{CANNOT}: use a TensorFlow with Keras 9 (2.16 or newer, for Keras 3), {EXPORT}"
    ),
    "same_keras": (
        f"ValueError: '{{0}}/same.keras' was written by Keras {{1}}, and Keras {{1}} "
        f"{CANNOT}: use the version that wrote it, {EXPORT}"
    ),
    "no_model": "TypeError: <class 'dict'> returned {{}}, expected a Keras model",
    "not_built": f"ValueError: the model 'unbuilt' (Sequential) {NOT_SAID}",
    "subclass": f"ValueError: the model 'own' (Own) {NOT_SAID}",
    "stateful": (
        "ValueError: layer 'memory' keeps its state from call to call (stateful=True), so "
        "one caller's answer would depend on another's: build the model with stateful=False"
    ),
    "sparse": (
        "TypeError: input 'words' of the model is sparse, and requests have dense arrays: "
        "make it dense, keras.Input(..., sparse=False)"
    ),
    "nested_inputs": (
        "TypeError: input 'pair' of the model is a list of inputs, expected one tensor: make "
        "its inputs a dict or a list of keras.Input, not one inside another"
    ),
    "ragged_output": (
        "TypeError: output 'tokens' of the model is a RaggedTensor, expected a dense tensor: "
        "end it with .to_tensor() or tf.sparse.to_dense"
    ),
    "unknown_option": (
        "ValueError: missing names the feature 'years', which this signature does not have: "
        "expected [word, age, code]"
    ),
    "backend": (
        "RuntimeError: Keras runs on jax (says its keras.json), and KerasPredictor runs "
        "models on TensorFlow: set KERAS_BACKEND=tensorflow, which reads the same .keras "
        "files, or wrap the model in a FunctionPredictor"
    ),
}


@pytest.fixture(scope="session")
def failures(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with models that cannot be loaded, and what was said of each."""
    folder = tmp_path_factory.mktemp("failures")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "tests.keras_failures", str(folder)], check=True)
    return folder, json.loads((folder / "failures.json").read_text())


@pytest.mark.parametrize("name", keras_failures.CASES)
def test_what_cannot_be_loaded_says_why_and_what_to_do(
    failures: tuple[Path, Any], name: str
) -> None:
    folder, said = failures
    assert said[name] == FAILURES[name].format(folder, said["version"])


async def test_a_pool_says_so_too(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(WorkerStartError) as caught:
        async with pool_of(saved / "custom.keras"):
            raise AssertionError("opened")
    assert f"'{saved}/custom.keras' has 'Scale', {REGISTER}" in str(caught.value)


async def test_without_tensorflow_it_says_what_to_install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = r'TensorFlow is not installed: pip install "predictpool\[tensorflow\]"'
    with caplog.at_level(logging.CRITICAL), pytest.raises(WorkerStartError, match=message):
        async with pool_of("model.keras"):
            raise AssertionError("opened")


def test_a_keras_that_cannot_be_imported_is_told_by_what_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text(
        "__version__ = '2.21.0'\n"
        "def __getattr__(name):\n"
        "    raise ImportError('Keras cannot be imported. Check that it is installed.')\n"
    )
    program = (
        "from predictpool import Device, KerasPredictor\n"
        "KerasPredictor('model.keras').load(Device())\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "TF_USE_LEGACY_KERAS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert run.stderr.splitlines()[-1] == (
        "ImportError: TensorFlow 2.21.0 cannot import Keras (TF_USE_LEGACY_KERAS=1): unset that, "
        "or install what it asks for (tf_keras, for TF_USE_LEGACY_KERAS=1)"
    )


class Model:
    """A model as Keras has them, by its name and its module."""

    __module__ = "keras.src.models.model"

    def __call__(self) -> None:
        """Models can be called, but not to return one."""


@pytest.mark.parametrize("given", [Model(), 7, None])
def test_what_is_no_path_and_no_function_is_refused_at_once(given: Any) -> None:
    with pytest.raises(
        TypeError, match=r"expected the path of a \.keras or \.h5 file, or a function"
    ):
        KerasPredictor(given)
