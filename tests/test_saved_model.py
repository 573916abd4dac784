"""What a SavedModelPredictor promises, on real SavedModels in real workers."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from predictpool import (
    Device,
    InvalidFeatures,
    Predictor,
    PredictorPool,
    SavedModelPredictor,
    WorkerStartError,
)
from predictpool.predictors import _model_files
from predictpool.predictors._versions import find_model, lacks
from tests import needs
from tests.answers import assert_equal_outputs, rows_of
from tests.pools import pids_of, until_replaced
from tests.saved_models import MODELS, ROWS, Telling, WithThreads

pytestmark = [
    needs.tensorflow,
    pytest.mark.anyio,
    pytest.mark.timeout(300),  # TensorFlow on a busy machine
]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone where the event loop does not matter: a model takes seconds to load."""
    return "asyncio"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the SavedModels, and with what the models themselves say."""
    folder = tmp_path_factory.mktemp("saved_models")
    subprocess.run([sys.executable, "-m", "tests.saved_models", str(folder)], check=True)
    return folder


class Known:
    """The rows of a model, and what the model itself says of them."""

    def __init__(self, folder: Path, name: str) -> None:
        expected = folder / f"{name}.expected"
        if not expected.exists():
            pytest.skip("this TensorFlow has no Estimators")
        self.features: Any = MODELS[name][1]()
        self.expected = pickle.loads(expected.read_bytes())
        self.methods: set[bytes] = set()

    async def check(self, pool: PredictorPool[Any], rows: slice) -> None:
        features = rows_of(self.features, rows)
        if len(features) == 1:  # Keras 3 has a name of its own for the input of a saved model
            assert pool.signature is not None
            features = dict(zip(pool.signature.features, features.values(), strict=True))
        outputs = dict(await pool.predict(features))
        self.methods |= set(outputs.pop("method"))
        assert_equal_outputs(outputs, rows_of(self.expected, rows))


def open_pool(folder: Path, name: str, *, workers: int = 1, **options: Any) -> PredictorPool[Any]:
    if name == "functions":
        options.setdefault("signature", "images")
    # The empty text of a warm-up of our own is no tf.train.Example.
    warmup = rows_of(MODELS[name][1](), slice(2)) if name == "examples" else None
    return PredictorPool(Telling(folder / name, **options), workers=workers, warmup=warmup)


# --- the same answers as the model itself ------------------------------------------


@pytest.mark.parametrize("name", MODELS)
async def test_answers_equal_the_model_called_directly(made: Path, name: str) -> None:
    known = Known(made, name)
    async with open_pool(made, name) as pool:
        for start, size in ((0, 1), (1, 2), (3, 7), (10, 64), (0, ROWS), (74, 1)):
            await known.check(pool, slice(start, start + size))
        async with anyio.create_task_group() as callers:
            for start in range(0, ROWS - 5, 3):
                callers.start_soon(known.check, pool, slice(start, start + 1 + start % 5))
        statistics = pool.statistics()
        assert statistics.batches < statistics.answered
    assert len(known.methods) == 1
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "anyio_backend",
    ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"), "trio"],
)
@pytest.mark.parametrize(
    ("name", "method"), [("tables", b"session"), ("without_saver", b"function")]
)
async def test_each_caller_gets_its_own_answer_both_ways(
    anyio_backend: object,  # noqa: ARG001 - read by anyio's plugin
    made: Path,
    name: str,
    method: bytes,
) -> None:
    known = Known(made, name)
    async with open_pool(made, name, workers=2) as pool:
        await pool.wait_ready()
        for size in (1, 3, 16):
            async with anyio.create_task_group() as callers:
                for turn in range(64):
                    start = 13 * turn % (ROWS - size)
                    callers.start_soon(known.check, pool, slice(start, start + size))
    assert known.methods == {method}


async def test_what_keras_saves_by_itself_runs_where_its_variables_are(made: Path) -> None:
    known = Known(made, "keras_saved")
    async with open_pool(made, "keras_saved") as pool:
        await known.check(pool, slice(9))
    saved = (made / "keras_saved" / "saved_model.pb").read_bytes()
    keras_3 = b"_operations" in saved
    assert known.methods == {b"function" if keras_3 else b"session"}


@pytest.mark.parametrize("name", ["tables", "without_saver", "functions", "graph"])
async def test_no_rows_are_empty_arrays_of_the_same_kind(made: Path, name: str) -> None:
    known = Known(made, name)
    async with open_pool(made, name) as pool:
        outputs = await pool.predict(rows_of(known.features, slice(0)))
    outputs.pop("method")
    varies = {"image": (0, 0, 2, 3)}  # an axis that the signature leaves open
    assert list(outputs) == list(known.expected)
    for key, values in known.expected.items():
        assert outputs[key].dtype == values.dtype
        assert outputs[key].shape == varies.get(key, (0, *values.shape[1:]))


async def test_no_rows_of_a_shape_that_the_signature_does_not_say_come_from_the_model(
    made: Path,
) -> None:
    async with open_pool(made, "functions", signature="some_rank") as pool:
        outputs = await pool.predict({"x": np.ones((0, 2), np.float32)})
        assert outputs["y"].shape == (0, 2)


async def test_one_example_has_no_row_axis_and_bytes_stay_bytes(made: Path) -> None:
    async with open_pool(made, "tables") as pool:
        outputs = await pool.predict_one({"word": "grün", "x": [1, 2]})
    assert outputs["word"] == "grün!".encode()
    assert outputs["number"] == -1
    np.testing.assert_array_equal(outputs["weighted"], np.array([2, -6], np.float32))


@pytest.mark.parametrize(("signature", "warmup"), [("constant", [0.0]), ("centred", [1.0, 5.0])])
async def test_outputs_that_are_not_row_by_row_are_found_out(
    made: Path, signature: str, warmup: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    predictor = SavedModelPredictor(made / "functions", signature=signature)
    async with PredictorPool(predictor, workers=1, warmup={"x": warmup}) as pool:
        async with anyio.create_task_group() as callers:
            for number in range(9):
                callers.start_soon(CHECKS[signature], pool, number)
        statistics = pool.statistics()
    assert statistics.batches == statistics.answered == 9
    assert "every request runs as a call of its own" in caplog.text


async def test_row_wise_false_runs_every_request_alone(made: Path) -> None:
    async with open_pool(made, "functions", signature="centred", row_wise=False) as pool:
        async with anyio.create_task_group() as callers:
            for number in range(9):
                callers.start_soon(centred, pool, number)
        statistics = pool.statistics()
    assert statistics.batches == statistics.answered == 9


async def constant(pool: PredictorPool[Any], number: int) -> None:
    outputs = await pool.predict({"x": [number, number + 2]})
    np.testing.assert_array_equal(outputs["y"], [number, number + 2])
    assert outputs["z"] == 2


async def centred(pool: PredictorPool[Any], number: int) -> None:
    outputs = await pool.predict({"x": [number, number + 2]})
    np.testing.assert_array_equal(outputs["y"], [-1, 1])


CHECKS = {"constant": constant, "centred": centred}


# --- what the signature says is checked --------------------------------------------


async def test_the_signature_of_the_model_is_what_requests_are_held_to(made: Path) -> None:
    async with open_pool(made, "functions") as pool:
        assert str(pool.signature) == "x: uint8 rows of shape (any, 2, 3)"
        with pytest.raises(InvalidFeatures, match=r"'x' has the shape \(1, 4, 2\)"):
            await pool.predict({"x": np.zeros((1, 4, 2), np.uint8)})
        with pytest.raises(InvalidFeatures, match=r"'x' has float64 .*uint8 rows"):
            await pool.predict({"x": np.full((1, 4, 2, 3), 0.5)})
        with pytest.raises(InvalidFeatures, match=r"'image' is unknown|'x' is missing"):
            await pool.predict({"image": np.zeros((1, 4, 2, 3), np.uint8)})
        assert pool.statistics().batches == 0


async def test_what_is_refused_can_be_relaxed(made: Path) -> None:
    options: dict[str, Any] = {"extra": "ignore", "missing": {"word": "?"}, "allow_nan": ["x"]}
    async with open_pool(made, "tables", **options) as pool:
        outputs = await pool.predict(
            {"word": ["red", None], "x": [[1.0, np.nan], [1.0, 1.0]], "more": [1, 2]}
        )
    assert outputs["word"].tolist() == [b"red!", b"?!"]
    assert np.isnan(outputs["weighted"][0, 1])


# --- which version -----------------------------------------------------------------


async def test_each_reload_takes_the_newest_version_that_is_whole(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "no_variables", tmp_path / "9")
    shutil.copytree(made / "next_version", tmp_path / "temp-1700000000")
    async with PredictorPool(SavedModelPredictor(tmp_path), workers=2) as pool:
        assert (await pool.predict({"x": [1, 5]}))["y"].tolist() == [2, 6]
        shutil.copytree(made / "next_version", tmp_path / "10")
        shutil.copytree(made / "graph", tmp_path / "11")
        (tmp_path / "11" / "variables" / "variables.index").unlink()
        await pool.reload()
        assert (await pool.predict({"x": [1, 5]}))["y"].tolist() == [3, 7]


def test_a_model_that_is_cut_off_while_it_is_looked_at_is_not_whole(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "tables", tmp_path / "1")
    read = _model_files._contents

    def cut_off(buffer: Any) -> Any:
        os.truncate(tmp_path / "1" / "saved_model.pb", 0)
        return read(buffer)

    monkeypatch.setattr(_model_files, "_contents", cut_off)
    assert lacks(tmp_path / "1") == "saved_model.pb is cut off"


async def test_a_pool_that_watches_takes_the_next_version_that_is_whole(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "no_variables", tmp_path / "9")
    async with PredictorPool(SavedModelPredictor(tmp_path), workers=1, watch=0.05) as pool:
        before = pids_of(pool)
        shutil.copytree(made / "graph", tmp_path / "11", ignore=shutil.ignore_patterns("*.index"))
        shutil.copytree(made / "next_version", tmp_path / "10")
        await until_replaced(pool, before)
        assert (await pool.predict({"x": [1, 5]}))["y"].tolist() == [3, 7]


def files_of(model: Path) -> list[str]:
    """The files that a model needs, from its folder."""
    found = [path.relative_to(model) for path in model.rglob("*") if path.is_file()]
    return [str(path) for path in found if path.name != "fingerprint.pb"]


@pytest.mark.parametrize("name", ["tables", "graph", "keras", "no_variables"])
def test_a_version_that_lacks_a_file_or_the_end_of_one_is_not_whole(
    made: Path, tmp_path: Path, name: str
) -> None:
    whole, copy = made / name, tmp_path / "2"
    shutil.copytree(whole, copy)
    shutil.copytree(made / "no_variables", tmp_path / "1")
    assert find_model(tmp_path) == copy
    assert lacks(copy) is None
    for file in files_of(whole):
        data = (whole / file).read_bytes()
        (copy / file).unlink()
        assert lacks(copy) == f"there is no {file}"
        assert find_model(tmp_path) == tmp_path / "1"
        for size in {0, 1, len(data) // 2, len(data) - 1} if not file.startswith("assets") else ():
            (copy / file).write_bytes(data[:size])
            assert lacks(copy) == f"{file} is cut off"
            assert find_model(tmp_path) == tmp_path / "1"
        (copy / file).write_bytes(data)
        assert lacks(copy) is None


def test_every_file_of_the_variables_is_asked_for(made: Path, tmp_path: Path) -> None:
    # The index of a model that is written in several files begins with how many there are.
    index = bytearray((made / "graph" / "variables" / "variables.index").read_bytes())
    assert index[:6] == bytes([0, 0, 6, 8, 1, 26]), "a block, its key, its value: one file"
    index[4] = 2
    shutil.copytree(made / "graph", tmp_path / "model")
    variables = tmp_path / "model" / "variables"
    (variables / "variables.index").write_bytes(index)
    (variables / "variables.data-00000-of-00001").rename(
        variables / "variables.data-00000-of-00002"
    )
    assert lacks(tmp_path / "model") == "there is no variables/variables.data-00001-of-00002"
    (variables / "variables.data-00001-of-00002").touch()
    assert lacks(tmp_path / "model") is None


# --- errors ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def said(made: Path) -> dict[str, str]:
    """What was said on loading models that cannot be loaded; see `tests.saved_models`."""
    answers: dict[str, str] = pickle.loads((made / "said").read_bytes())
    return answers


ALL = "[centred, constant, fixed, half, halved, images, no_rank, nothing, ragged, some_rank]"
REFUSED = {
    "trees": (
        "RuntimeError: the SavedModel in '{made}/trees' (written by TensorFlow {version}) needs "
        "the operation BoostedTreesEnsembleResourceHandleOp, which TensorFlow {version} cannot "
        "run: TensorFlow 2.8 was the last that could. Retrain the model with a library for trees "
        "that is alive, such as TensorFlow Decision Forests or XGBoost"
    ),
    "unknown": (
        "RuntimeError: the SavedModel in '{made}/unknown' (written by TensorFlow {version}) needs "
        "the operation NobodysOp, which TensorFlow {version} does not have. If it comes with a "
        "library, have that imported before the model is loaded: predictor.preload += "
        "('tensorflow_text',), for example; if it is TensorFlow's, install the version that wrote "
        "the model"
    ),
    "newer": (
        "RuntimeError: the SavedModel in '{made}/newer' (written by TensorFlow 9.8.7) is too new "
        "for TensorFlow {version}: install TensorFlow 9.8.7 or newer"
    ),
    "train": (
        "RuntimeError: the SavedModel in '{made}/train' (written by TensorFlow {version}) has no "
        "graph with the tag 'serve', only {{'train'}}: export it for serving"
    ),
    "mute": (
        "ValueError: the SavedModel in '{made}/mute' has no signature, so there is nothing to "
        "call: save it with signatures=, or with model.export"
    ),
    "several": (
        "ValueError: the SavedModel in '{made}/functions' has several signatures, none of them "
        f"called predict or serving_default: say signature=, one of {ALL}"
    ),
    "wrong name": (
        f"ValueError: signature='image': the SavedModel in '{{made}}/functions' has {ALL}"
    ),
    "wrong feature": (
        "ValueError: allow_nan names the feature 'y', which this signature does not have: "
        "expected [bag, x]"
    ),
    "fixed": (
        "ValueError: the input 'x' of the SavedModel has the shape [1, 3], in which no axis is for "
        "the rows. Export the model with another signature: let its shape begin with None"
    ),
    "half": (
        "ValueError: the input 'x' of the SavedModel has the dtype bfloat16, which numpy lacks. "
        "Export the model with another signature: take float32 and cast it"
    ),
    "halved": (
        "ValueError: the output 'y' of the SavedModel has the dtype bfloat16, which numpy lacks. "
        "Export the model with another signature: cast it to float32"
    ),
    "no_rank": (
        "ValueError: the input 'x' of the SavedModel is of unknown rank, so that nobody knows what "
        "a row is. Export the model with another signature: give it a shape in input_signature"
    ),
    "nothing": (
        "ValueError: the signature 'nothing' has no inputs: there is nothing to predict from"
    ),
    "ragged": (
        "ValueError: the output 'y' of the SavedModel is ragged or sparse, and answers are arrays. "
        "Export the model with another signature: make it dense, with .to_tensor() or "
        "tf.sparse.to_dense()"
    ),
    # The signatures that are taken: the only one, serving_default, predict.
    "chosen of graph": "bag: float32 rows of any length (ragged), x: float32 rows of shape (3,)",
    "chosen of keras": "vector: float32 rows of shape (4,), word: text rows of shape (1,)",
    "chosen of examples": "examples: text rows of shape ()",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_with_what_to_do(
    made: Path, said: dict[str, str], case: str
) -> None:
    version = re.search(r"written by TensorFlow ([\d.]+)", said["train"])
    assert version is not None
    assert said[case] == REFUSED[case].format(made=made, version=version[1])


async def test_a_pool_says_why_the_model_was_not_loaded(made: Path) -> None:
    pool = PredictorPool(SavedModelPredictor(made / "functions", signature="image"), workers=1)
    with pytest.raises(WorkerStartError, match=r"signature='image': .* has \[centred, constant,"):
        await pool.open()


def load_error(path: Path) -> str:
    """What is said of a path that is no model; TensorFlow is not needed for it."""
    with pytest.raises(FileNotFoundError) as caught:
        SavedModelPredictor(path).load(Device())
    return str(caught.value)


def test_a_path_that_is_no_saved_model_is_named_for_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert load_error(folder) == (
        f"there is no '{folder}': expected the folder of a SavedModel, or a folder of its versions "
        "(1, 2, …)"
    )
    folder.mkdir()
    writes = "tf.saved_model.save, model.export and estimator.export_saved_model write one"
    none = f"there is no saved_model.pb in '{folder}'"
    assert (
        load_error(folder) == f"{none} and no version of one (1, 2, …): there is nothing. {writes}"
    )
    (folder / "temp-12").mkdir()
    (folder / "notes.txt").touch()
    assert load_error(folder) == (
        f"{none} and no version of one (1, 2, …): there is notes.txt, temp-12. {writes}"
    )
    (folder / "checkpoint").touch()
    assert load_error(folder) == (
        f"{none}, but a checkpoint: EstimatorPredictor takes the function that builds its "
        "Estimator; `predictpool export` makes a SavedModel of it"
    )
    (folder / "best.keras").touch()
    assert load_error(folder) == (
        f"{none}, but the Keras file 'best.keras': KerasPredictor takes that"
    )
    keras = folder / "best.keras"
    assert load_error(keras) == (
        f"'{keras}' is a file of Keras: KerasPredictor('{keras}') takes it"
    )
    notes = folder / "notes.txt"
    assert load_error(notes) == f"'{notes}' is a file, expected the folder of a SavedModel"
    (folder / "saved_model.pb").touch()
    file = folder / "saved_model.pb"
    assert load_error(file) == f"'{file}' is a file: expected the folder that it is in, '{folder}'"


def test_what_is_still_being_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").touch()
    remedy = "they are still being written, or were not copied to their end"
    assert load_error(tmp_path) == (
        f"no version in '{tmp_path}' is whole (2: saved_model.pb is cut off; 1: there is no "
        f"saved_model.pb): {remedy}"
    )
    assert load_error(tmp_path / "2") == (
        f"the SavedModel in '{tmp_path / '2'}' is not whole: saved_model.pb is cut off. It is "
        "still being written, or was not copied to its end"
    )


def test_a_tensorflow_that_is_not_there_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        SavedModelPredictor(made / "graph").load(Device())
    said = 'TensorFlow is not installed: pip install "predictpool[tensorflow]"'
    assert str(caught.value) == said


def test_options_are_checked_at_once() -> None:
    not_a_path: Any = 3
    with pytest.raises(TypeError, match="path is 3, expected the folder of a SavedModel"):
        SavedModelPredictor(not_a_path)
    not_a_name: Any = {"x": np.float32}
    with pytest.raises(TypeError, match="expected the name of one that the SavedModel has"):
        SavedModelPredictor("model", signature=not_a_name)
    with pytest.raises(RuntimeError, match=r"predict\(\) before load\(\)"):
        SavedModelPredictor("model").predict({"x": np.zeros(1)})
    assert isinstance(SavedModelPredictor("model"), Predictor)


# --- in the worker -----------------------------------------------------------------


async def test_workers_are_forked_from_a_template_that_has_imported_tensorflow(made: Path) -> None:
    async with open_pool(made, "without_saver", workers=2) as pool:
        await pool.wait_ready()
        for worker in pool.workers():
            command = psutil.Process(worker.pid).cmdline()
            assert any("_template.py" in part for part in command), command


@pytest.mark.parametrize("name", ["tables", "without_saver"])
async def test_tensorflow_has_as_many_threads_as_the_device_says(made: Path, name: str) -> None:
    async with PredictorPool(WithThreads(made / name), workers=1) as pool:
        outputs = await pool.predict({"word": ["red"], "x": [[1.0, 2.0]]})
    assert outputs["threads"].tolist() == [[3, 3]]


def test_what_preload_names_is_imported_by_workers_that_are_not_forked(made: Path) -> None:
    predictor = SavedModelPredictor(made / "graph")
    predictor.preload = ("no_such_library", *predictor.preload)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        predictor.load(Device())
    assert "tensorflow" not in sys.modules
