"""``predictpool demo``, as its user meets it."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from predictpool import _cli, _demo
from predictpool._command import CommandError
from predictpool._demo import DemoResult, Way
from tests import needs

RUN = "from predictpool._cli import main; main()"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "model"


@pytest.fixture(scope="module")
def as_json(model_dir: Path) -> subprocess.CompletedProcess[str]:
    """A real run, only smaller: 400 rows, 300 steps, one worker."""
    sizes = ["--rows", "400", "--steps", "300", "--workers", "1"]
    return python("-m", "predictpool", "demo", "--json", *sizes, "--model-dir", str(model_dir))


@needs.estimators
def test_json_is_all_there_is_on_stdout(as_json: subprocess.CompletedProcess[str]) -> None:
    assert as_json.returncode == 0, as_json.stderr
    result = json.loads(as_json.stdout)
    assert (result["rows"], result["steps"], result["workers"]) == (400, 300, 1)
    assert result["tensorflow"].startswith("2.")


@needs.estimators
def test_every_way_is_asked_checked_and_as_accurate_as_the_model(
    as_json: subprocess.CompletedProcess[str],
) -> None:
    ways = {way["name"]: way for way in json.loads(as_json.stdout)["ways"]}
    assert {name: (way["callers"], way["answers"]) for name, way in ways.items()} == {
        "estimator.predict for each request": (1, 5),
        "cached in process, generator": (1, 400),
        "cached in process, session": (1, 400),
        "pool, generator": (64, 6 * 400),
        "pool, session": (64, 6 * 400),
    }
    assert len({way["accuracy"] for way in ways.values()}) == 1
    assert ways["pool, generator"]["accuracy"] >= 0.8  # always saying "<=50K" gives 0.75
    assert all(way["p50_seconds"] > 0 and way["rows_per_second"] > 0 for way in ways.values())


@needs.estimators
def test_progress_is_shown_and_tensorflow_is_not_heard(
    as_json: subprocess.CompletedProcess[str],
) -> None:
    for phase in ("Training the model", "Starting: pool, generator", "Asking: pool, session"):
        assert phase in as_json.stderr
    for noise in ("WARNING", "deprecated", "cuda", "Traceback"):
        assert noise not in as_json.stderr


@needs.estimators
def test_people_get_a_table_and_a_kept_model_is_not_trained_again(
    as_json: subprocess.CompletedProcess[str], model_dir: Path
) -> None:
    assert as_json.returncode == 0, as_json.stderr
    trained = sorted(file.name for file in model_dir.glob("model.ckpt-*"))
    assert trained
    sizes = ["--rows", "5", "--steps", "300", "--workers", "1"]
    ended = python("-m", "predictpool", "demo", *sizes, "--model-dir", str(model_dir))
    assert ended.returncode == 0, ended.stderr
    assert "5 held-out census rows" in ended.stdout
    assert "pool, session" in ended.stdout
    assert sorted(file.name for file in model_dir.glob("model.ckpt-*")) == trained


@pytest.mark.parametrize("module", ["typer", "rich", "psutil"])
def test_without_the_cli_extra_there_is_one_line_that_says_what_to_install(module: str) -> None:
    ended = python("-c", f"import sys; sys.modules[{module!r}] = None; {RUN}", "demo")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "predictpool: the command line needs typer, rich and psutil: "
        'pip install "predictpool[cli]"\n'
    )


@pytest.mark.parametrize("module", ["None", "types.ModuleType('tensorflow')"])
def test_without_estimators_there_is_one_line_that_says_what_to_install(module: str) -> None:
    hide = f"import sys, types; sys.modules['tensorflow'] = {module}; {RUN}"
    ended = python("-c", hide, "demo", "--json")
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("predictpool: the demo needs TensorFlow 2.12 to 2.15")
    assert 'pip install "predictpool[estimator]"' in line


def test_version() -> None:
    ended = python("-m", "predictpool", "--version")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("predictpool ")


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("somebody's model")
    with pytest.raises(
        CommandError, match="is not empty and holds no model of this demo"
    ) as raised:
        _demo.claim(tmp_path)
    assert raised.value.exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def answers(probabilities: list[float]) -> dict[str, Any]:
    given = np.array(probabilities, np.float32)
    ids = (given > 0.5).astype(np.int64)[:, np.newaxis]
    return {
        "probabilities": np.stack([1 - given, given], axis=1),
        "class_ids": ids,
        "classes": np.where(ids == 1, b"1", b"0").astype(object),
    }


def one_by_one(batch: dict[str, Any]) -> list[dict[str, Any]]:
    count = len(batch["class_ids"])
    return [{name: batch[name][row : row + 1] for name in batch} for row in range(count)]


EXPECTED = answers([0.1, 0.9, 0.500001])


def test_equal_answers_pass_in_any_number_of_rounds() -> None:
    _demo.check("pool", one_by_one(EXPECTED)[:2], EXPECTED)
    _demo.check("pool", one_by_one(EXPECTED) * 3, EXPECTED)


def test_a_tie_may_fall_either_way() -> None:
    _demo.check("pool", one_by_one(answers([0.1, 0.9, 0.499999])), EXPECTED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (one_by_one(EXPECTED)[1:], "held-out row 0 with another 'probabilities'"),
        (one_by_one(answers([0.1, 0.9001, 0.5])), "held-out row 1 with another 'probabilities'"),
        ([{**one_by_one(EXPECTED)[0], "class_ids": np.ones((1, 1), np.int64)}], "'class_ids'"),
        ([{**one_by_one(EXPECTED)[0], "class_ids": np.zeros((1, 1), np.int32)}], "dtypes"),
        ([{**one_by_one(EXPECTED)[0], "classes": np.array([b"0"], object)}], "shapes"),
        ([{"probabilities": EXPECTED["probabilities"][:1]}], "outputs"),
    ],
    ids=["stale", "off", "wrong class", "dtype", "shape", "missing output"],
)
def test_a_wrong_answer_is_an_error_that_names_it(
    given: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(CommandError, match=message) as raised:
        _demo.check("pool", given, EXPECTED)
    assert raised.value.exit_code == 1
    assert str(raised.value).startswith("pool answered")


def test_a_wrong_answer_ends_the_command_with_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**_: Any) -> None:
        _demo.check("pool", one_by_one(EXPECTED)[1:], EXPECTED)

    monkeypatch.setattr(_demo, "require_estimators", lambda: "2.15.1")  # not in this process
    monkeypatch.setattr(_demo, "run", run)
    with pytest.raises(SystemExit) as raised:
        _cli._demo(rows=3, workers=1, steps=1, model_dir=None, as_json=True)
    assert raised.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip().startswith("predictpool: pool answered held-out row 0")


def test_the_table_has_a_line_for_each_way() -> None:
    ways = (
        Way("estimator.predict for each request", 0.396, 2.5, 1, 0.847, 5),
        Way("pool, session", 0.00047, 12_345.6, 64, 0.847, 12_000),
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_demo.table(DemoResult("2.15.1", 1_000, 6.0, 2_000, 2, ways)))
    text = console.export_text()
    for cell in ("396.00", "2.5", "pool, session", "0.47", "64", "12,346", "0.847"):
        assert cell in text
    assert "2,000 held-out census rows" in text
    assert "12,005 answers equal those of estimator.predict" in text
