"""``predictpool export``, as its user meets it: what crosses, and what does not in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from predictpool import Device, EstimatorPredictor, Signature
from predictpool import _export as export_module
from predictpool._check import Feature, Output
from predictpool._command import CommandError
from predictpool._export import ExportResult, difference, left_behind, put_in_place, serving
from predictpool.predictors._estimator_export import Answer
from tests import needs
from tests.mutations import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_left")]

ESTIMATORS = """
    from functools import partial
    from pathlib import Path
    from predictpool import EstimatorPredictor, FunctionPredictor
    from tests import canned, models, uncrossable

    TRAINED, HERE = Path({trained!r}), Path({here!r})

    def build_regressor():
        return models.build_regressor(TRAINED)

    regressor = EstimatorPredictor(build_regressor, missing={{"word": ""}}, extra="ignore")
    regressor_rows = models.regressor_rows()[0]

    custom = EstimatorPredictor(
        partial(models.build_custom, TRAINED), signature=models.CUSTOM_SIGNATURE, method="session"
    )
    custom_rows = models.custom_rows()[0]

    array = EstimatorPredictor(partial(models.build_array, TRAINED))
    array_rows = models.array_rows()[0]
    doubling = EstimatorPredictor(
        partial(models.build_doubling, TRAINED), signature=("float32", (3,))
    )

    def transformed(transform):
        return EstimatorPredictor(
            partial(models.build_array, TRAINED), signature=("float32", (3,)), transform=transform
        )

    halved = transformed(uncrossable.halved)
    halved_by_python = transformed(uncrossable.halved_by_python)

    def never(build):
        return EstimatorPredictor(partial(build, HERE), signature=canned.NUMBER)

    random = never(uncrossable.build_random)
    python = never(uncrossable.build_python)
    fed_by_a_hook = never(uncrossable.build_fed_by_a_hook)
    boosted_trees = never(canned.build_boosted_trees)

    function = FunctionPredictor(lambda: lambda x: x)
    number = 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    if needs.HAS_ESTIMATORS:
        subprocess.run([sys.executable, "-m", "tests.models", str(folder)], check=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, on Python's path, with a module ``income``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = textwrap.dedent(ESTIMATORS).format(trained=str(trained), here=str(tmp_path))
    (tmp_path / "income.py").write_text(text)
    yield tmp_path
    sys.modules.pop("income", None)


def export(name: str, features: str | None = None) -> ExportResult:
    named = None if features is None else f"income:{features}"
    return export_module.run(f"income:{name}", Path("out"), features=named, start_timeout=200)


def mistake(name: str, exit_code: int = 1, features: str | None = None) -> str:
    """Return the line of a mistake, after which nothing may be there that one could serve."""
    with pytest.raises(CommandError) as raised:
        export(name, features)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)
    out = Path("out")
    assert not out.exists() or not list(out.iterdir())
    return str(raised.value)


def command(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # for the modules of the models
    return subprocess.run(
        [
            sys.executable,
            "-c",
            code or "from predictpool._cli import main; main()",
            "export",
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


# --- what crosses ------------------------------------------------------------------


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_a_model_function_with_dropout_batch_norm_and_text() -> None:
    result = export("custom", "custom_rows")
    assert result == ExportResult(
        target="income:custom",
        path="out/1",
        tensorflow=result.tensorflow,
        signatures=("predict", "serving_default"),
        features=(Feature("x", "float32", (5,)), Feature("text", "text", ())),
        outputs=(
            Output("score", "float32", ()),
            Output("text", "text", ()),
            Output("twice", "float32", (2,)),
        ),
        rows=(1, 2, 7, 150),
        own_rows=True,
        max_difference=result.max_difference,
        left_behind=("the prediction hook Journal: it is Python",),
        serve="SavedModelPredictor('out')",
    )
    assert result.tensorflow.startswith("2.")
    assert 0 <= result.max_difference <= 1e-6
    assert [entry.name for entry in Path("out").iterdir()] == ["1"]
    assert Path("out", "1", "saved_model.pb").is_file()


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_a_function_that_builds_an_estimator_gets_a_version_of_its_own_each_time() -> None:
    assert export("build_regressor").path == "out/1"
    result = export("regressor", "regressor_rows")
    assert result.path == "out/2"
    assert result.serve == "SavedModelPredictor('out', extra='ignore', missing={'word': ''})"
    assert result.left_behind == ("the default of 'number' ([0.5]): every request has to have it",)


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_one_array_gets_a_name() -> None:
    result = export("array", "array_rows")
    assert result.features == (Feature("input", "float32", (3,)),)
    assert result.outputs == (Output("output", "float32", (3,)),)
    assert result.left_behind == ("features without a name: they are called 'input' now",)


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_a_transform_is_part_of_it() -> None:
    # With zeros, a transform that was left out would do no harm.
    assert export("halved", "array_rows").max_difference == 0


# --- what does not -----------------------------------------------------------------


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_answers_that_differ_are_not_written() -> None:
    line = mistake("random")
    assert line.startswith("the SavedModel does not say what the Estimator says, score: ")
    assert "A model that draws random numbers" in line


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_answers_that_a_hook_has_changed_are_not_written() -> None:
    assert "prediction_hooks change the answers" in mistake("fed_by_a_hook")


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_a_model_that_calls_python() -> None:
    assert "the model calls a Python function in half (tf.py_function, " in mistake("python")
    assert "the model calls a Python function in half (" in mistake("halved_by_python")


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_an_estimator_with_a_predict_of_its_own() -> None:
    line = mistake("doubling")
    assert "Doubling has a predict() of its own (tests.models), which a SavedModel would" in line


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_boosted_trees() -> None:
    line = mistake("boosted_trees")
    assert "has no attribute 'BoostedTreesClassifier'" in line
    assert "TensorFlow removed boosted trees in 2.9" in line


@needs.estimators
@pytest.mark.usefixtures("folder")
def test_what_it_takes_has_to_be_known() -> None:
    assert "nobody knows what this estimator takes" in mistake("array")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "function",
            (
                "income:function is a FunctionPredictor: expected an EstimatorPredictor, or a "
                "function that builds an Estimator. Only Estimators have to be exported"
            ),
        ),
        (
            "number",
            (
                "income:number is of the type int, not a predictor: name an EstimatorPredictor, "
                "SavedModelPredictor, KerasPredictor, FunctionPredictor or a Predictor of your own"
            ),
        ),
    ],
)
def test_what_is_no_estimator(name: str, line: str) -> None:
    assert mistake(name, 2) == line


@pytest.mark.usefixtures("folder")
def test_a_place_where_nothing_can_be_written() -> None:
    Path("out").write_text("a file")
    with pytest.raises(CommandError, match=r"OUT cannot be written: .*File exists: 'out'"):
        export("custom")


ADVICE = (
    "has no Estimators, 2.15 was the last. Where that is (pip install "
    '"predictpool[estimator]" on Python 3.11), `predictpool export MODULE:ESTIMATOR OUT` writes '
    'the model as a SavedModel; here, SavedModelPredictor("OUT") serves it'
)


@needs.no_estimators
@pytest.mark.usefixtures("folder")
def test_a_tensorflow_without_estimators() -> None:
    assert ADVICE in mistake("regressor")


def test_an_estimator_predictor_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Current:
        __version__ = "2.21.0"

    monkeypatch.setitem(sys.modules, "tensorflow", Current)
    with pytest.raises(RuntimeError) as raised:
        EstimatorPredictor(list).load(Device("cpu"))
    assert str(raised.value) == f"TensorFlow 2.21.0 {ADVICE}"


# --- the comparison ----------------------------------------------------------------

SCORE = np.array([[0.5], [2.0]], np.float32)


def test_the_largest_difference_of_all_floats_is_told() -> None:
    wanted = {"a": SCORE, "b": np.array([1.0, np.nan]), "c": np.array([b"x", b"y"], object)}
    given = {**wanted, "a": SCORE + np.array([[0.0], [5e-7]], np.float32)}
    assert difference(wanted, wanted) == 0
    assert difference(given, wanted) == pytest.approx(4.8e-7, rel=0.01)  # as float32 has it
    assert difference({"a": SCORE[:0]}, {"a": SCORE[:0]}) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"b": SCORE}, "outputs: ['b'], expected ['a']"),
        ({"a": SCORE.astype(np.float64)}, "a: float64[2, 1], expected float32[2, 1]"),
        ({"a": SCORE[:, 0]}, "a: float32[2], expected float32[2, 1]"),
        (
            {"a": SCORE + np.array([[0], [1e-5]], np.float32)},
            "a: 2.00001001",
        ),
        ({"a": SCORE * np.array([[1], [np.nan]], np.float32)}, "a: nan, expected 2.0 "),
    ],
    ids=["names", "dtype", "shape", "value", "NaN"],
)
def test_a_difference_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(CommandError) as raised:
        difference(given, {"a": SCORE})
    assert words in str(raised.value)


def test_text_has_to_be_equal() -> None:
    wanted = {"a": np.array([b"x", b"y"], object)}
    with pytest.raises(CommandError, match="a: b'z', expected b'y'"):
        difference({"a": np.array([b"x", b"z"], object)}, wanted)


# --- where it goes, and how it is served -------------------------------------------


def test_versions_are_counted_from_the_highest_that_is_there(tmp_path: Path) -> None:
    for name in ("2", "1700000000", "notes", ".export-x"):
        (tmp_path / name).mkdir()
    (tmp_path / ".export-x" / "model").mkdir()
    placed = put_in_place(tmp_path / ".export-x" / "model", tmp_path)
    assert placed == tmp_path / "1700000001"
    assert placed.is_dir()


def test_what_an_estimator_takes_in_its_stride_is_said_of_the_saved_model() -> None:
    signature = Signature.declared(
        {"age": (np.float32, (), 30.0), "job": (str, ()), "pay": (np.float32, ())}
    ).relaxed(extra="ignore", missing={"job": "none"}, allow_nan=["pay"])
    assert serving(Path("out"), signature) == (
        "SavedModelPredictor('out', extra='ignore', missing={'job': 'none'}, allow_nan=['pay'])"
    )
    assert left_behind(signature, Answer(None, "2.15.1", ("Hook",))) == (
        "the default of 'age' (30.0): every request has to have it",
        "the prediction hook Hook: it is Python",
    )


# --- the command -------------------------------------------------------------------


@needs.estimators
def test_json_is_all_there_is_on_stdout_and_tensorflow_is_not_imported(folder: Path) -> None:
    code = """if True:
        import sys
        from predictpool._cli import main
        try:
            main()
        finally:
            print("tensorflow" in sys.modules, file=sys.stderr)
    """
    arguments = ("income:custom", "out", "--features", "income:custom_rows", "--json")
    ended = command(folder, *arguments, code=code)
    assert (ended.returncode, ended.stderr) == (0, "False\n")
    assert json.loads(ended.stdout)["path"] == "out/1"


def test_a_mistake_is_one_line(folder: Path) -> None:
    ended = command(folder, "income:number", "out")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("predictpool: income:number is of the type int")


def test_people_are_told_how_to_serve_it() -> None:
    result = ExportResult(
        target="income:predictor",
        path="out/1",
        tensorflow="2.15.1",
        signatures=("predict", "serving_default"),
        features=(Feature("age", "float32", (1,)),),
        outputs=(Output("score", "float32", ()),),
        rows=(1, 2, 7),
        own_rows=False,
        max_difference=6e-8,
        left_behind=("the prediction hook Journal: it is Python",),
        serve="SavedModelPredictor('out')",
    )
    console = Console(width=100)
    with console.capture() as shown:
        console.print(export_module.table(result))
    text = shown.get()
    for words in (
        "income:predictor, by TensorFlow 2.15.1",
        "requests of 1, 2, 7 rows (zeros and empty text; --features names better ones)",
        "6.0e-08 at most; all else equal",
        "the prediction hook Journal: it is Python",
        "SavedModelPredictor('out')",
        'pip install "predictpool[tensorflow]", on a current TensorFlow',
    ):
        assert words in text
