"""``predictpool bench``: it measures what it says, and says what follows and what does not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from predictpool import _bench
from predictpool._bench import BenchResult, Mark, Measurement
from predictpool._command import CommandError
from tests import needs

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]

DOUBLES = """
    import numpy as np
    from predictpool import FunctionPredictor

    predictor = FunctionPredictor(
        lambda: lambda features: features["x"] * 2, row_wise=True,
        signature={"x": (np.float32, ())},
    )
    alone = FunctionPredictor(lambda: lambda x: x.sum(), signature=(np.float32, ()))
    unknown = FunctionPredictor(lambda: lambda x: x)
    rows = {"x": [1.0, 2.0, 3.0]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, on Python's path; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "doubles.py").write_text(textwrap.dedent(DOUBLES))
    yield tmp_path
    sys.modules.pop("doubles", None)


def bench(target: str = "doubles:predictor", **options: Any) -> BenchResult:
    defaults: dict[str, Any] = {
        "features": None,
        "workers": (1, 2),
        "callers": 16,
        "seconds": 0.05,
        "plot_file": None,
        "start_timeout": 30.0,
        "report": lambda _what, _done, _total: None,
    }
    return _bench.run(target, **(defaults | options))


def mistake(exit_code: int, target: str = "doubles:predictor", **options: Any) -> str:
    with pytest.raises(CommandError) as raised:
        bench(target, **options)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- what is measured ---------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_every_setting_is_measured_and_one_of_them_recommended() -> None:
    said: list[tuple[str, int, int]] = []
    result = bench(report=lambda *facts: said.append(facts))
    settings = [(each.workers, each.max_batch_size) for each in result.loaded]
    assert settings == [(1, 1), (2, 1), (1, 8), (2, 8), (1, 64), (2, 64)]
    assert result.best in result.loaded
    assert (result.rows, result.callers, result.row_wise) == (1, 16, True)
    assert (result.alone.workers, result.alone.rows_per_call) == (1, 1.0)
    for each in (result.alone, *result.loaded):
        assert 0 < each.lowest <= each.requests_per_second <= each.highest
        assert 0 < each.p50_seconds <= each.p99_seconds
        assert each.answers > 0
    assert said[-1] == ("workers=2, max_batch_size=64", 7, 7)


@pytest.mark.usefixtures("folder")
def test_batches_are_as_large_as_they_may_be() -> None:
    result = bench(workers=(1,), callers=32)
    calls = {each.max_batch_size: each.rows_per_call for each in result.loaded}
    assert calls[1] == 1
    assert 4 < calls[8] <= 8
    assert 8 < calls[64] <= 32


@pytest.mark.usefixtures("folder")
def test_rows_of_the_users_own_make_larger_requests() -> None:
    result = bench(workers=(1,), features="doubles:rows")
    assert result.rows == 3
    assert [each.max_batch_size for each in result.loaded] == [3, 24, 192]
    assert result.loaded[0].rows_per_call == 3
    assert 8 < result.loaded[1].rows_per_call <= 24
    assert result.own_rows


@pytest.mark.usefixtures("folder")
def test_without_row_wise_there_is_nothing_to_batch() -> None:
    said: list[tuple[str, int, int]] = []
    result = bench("doubles:alone", workers=(1,), report=lambda *facts: said.append(facts))
    assert [each.max_batch_size for each in result.loaded] == [1]
    assert _bench.recommendation(result).startswith("Take workers=1: ")
    assert said[-1] == ("workers=1", 2, 2)


def test_only_answers_between_the_marks_count() -> None:
    marks = [Mark(1.0, 0.5, 10, 5), Mark(2.0, 0.75, 30, 10), Mark(4.0, 1.25, 70, 15)]
    answers = [(1.0, 9.0), (1.5, 0.1), (2.0, 0.2), (3.0, 0.4), (5.0, 9.0)]
    assert _bench.measurement_of(answers, marks, (2, 8)) == Measurement(
        workers=2,
        max_batch_size=8,
        requests_per_second=1.25,  # of 2 in one second and 1 in two
        lowest=0.5,
        highest=2.0,
        p50_seconds=0.2,
        p99_seconds=0.4,
        answers=3,
        rows_per_call=6.0,
        application=0.25,
    )


@pytest.mark.usefixtures("folder")
def test_a_round_lasts_until_there_is_an_answer() -> None:
    result = bench("doubles:alone", workers=(1,), callers=1, seconds=1e-6)
    assert min(each.lowest for each in (result.alone, *result.loaded)) > 0


# --- what follows -------------------------------------------------------------------


def measured(workers: int, size: int, rate: float, p99: float, **facts: Any) -> Measurement:
    return replace(
        Measurement(workers, size, rate, rate, rate, p99 / 2, p99, 1000, float(size), 0.5), **facts
    )


def result_of(*loaded: Measurement, **facts: Any) -> BenchResult:
    alone = measured(1, 1, 900, 0.002)
    result = BenchResult("a:b", True, 1, True, 64, 1.0, 4, alone, loaded)
    return replace(result, **facts)


def test_fewer_workers_are_enough_where_more_bring_little() -> None:
    result = result_of(
        measured(1, 8, 1000, 0.06),
        measured(2, 8, 1850, 0.05),
        measured(2, 64, 1900, 0.04),
        measured(4, 64, 2000, 0.03),
    )
    assert (result.best.workers, result.best.max_batch_size) == (2, 64)
    assert _bench.recommendation(result) == (
        "Take workers=2, max_batch_size=64: 1,900 requests/s, within 10 % of the most (2,000 with "
        "workers=4, max_batch_size=64), with fewer workers."
    )


def test_the_fastest_is_taken_where_it_is_much_faster() -> None:
    result = result_of(measured(1, 8, 1000, 0.06), measured(2, 8, 1850, 0.05))
    assert _bench.recommendation(result) == (
        "Take workers=2, max_batch_size=8: 1,850 requests/s, the most that was measured."
    )


@pytest.mark.parametrize(
    ("facts", "options", "said"),
    [
        ({"lowest": 500.0, "highest": 1000.0}, {}, "differ by up to 100%"),
        ({"application": 0.95}, {}, "This process itself was busy"),
        ({"answers": 40}, {}, "A p99 of 40 answers is the slowest of them"),
        ({}, {"own_rows": False}, "zeros and empty text"),
        ({}, {"row_wise": False}, "not row-wise"),
    ],
)
def test_what_the_numbers_do_not_say(
    facts: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    (always,) = _bench.cautions(result_of(measured(1, 8, 1000, 0.06)))
    assert always.startswith("All callers were in this process")
    more = list(_bench.cautions(result_of(measured(1, 8, 1000, 0.06, **facts), **options)))
    assert more[1:] == [always]
    assert said in more[0]


def test_people_see_what_is_going_on() -> None:
    others = set(threading.enumerate())
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    with _bench.shown(terminal) as report:
        report("workers=2, max_batch_size=64", 6, 7)
    for thread in set(threading.enumerate()) - others:  # rich does not wait for its own
        thread.join()
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "workers=2, max_batch_size=64" in shown
    assert "6 of 7" in shown


def test_people_get_a_table() -> None:
    result = result_of(measured(1, 8, 1000, 0.06), measured(2, 8, 1850.4, 0.05))
    console = Console(file=io.StringIO(), width=80)
    console.print(_bench.table(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a:b, 1 row in each request, 64 callers on 4 cores" in shown
    assert "3 rounds of 1 s. One caller alone: p50 1.00 ms, p99 2.00 ms." in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "2 8 1,850 0% 25.00 50.00 8.0 50%" in lines
    assert _bench.recommendation(result) in shown.replace("\n", " ")


# --- mistakes -----------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_a_predictor_of_which_nothing_is_known() -> None:
    assert mistake(2, "doubles:unknown") == (
        "nobody knows what doubles:unknown takes: declare its signature=, or name features that it "
        "can take: --features MODULE:FEATURES"
    )


def test_a_model_that_raises(folder: Path) -> None:
    (folder / "doubles.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from predictpool import FunctionPredictor

            def load():
                calls = []
                def predict(x):
                    calls.append(x)
                    if len(calls) > 20:
                        raise ValueError("enough")
                    return x
                return predict

            predictor = FunctionPredictor(load, signature=(np.float32, ()))
            """
        )
    )
    assert mistake(1) == "predict failed: ValueError: enough"


@pytest.mark.usefixtures("folder")
def test_a_drawing_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mistake(2, plot_file=Path("out.jpg")) == (
        "--plot out.jpg: expected a name that ends with .png or .svg"
    )
    assert mistake(2, plot_file=Path("none/out.png")) == (
        "--plot none/out.png: there is no folder none"
    )
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert mistake(2, plot_file=Path("out.png")) == (
        '--plot needs matplotlib: pip install "predictpool[bench]"'
    )


# --- the command --------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from predictpool._cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "bench", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@needs.matplotlib
def test_it_prints_json_and_draws(folder: Path) -> None:
    options = ["--json", "--workers", "1,2", "--callers", "8", "--seconds", "0.05"]
    run = command(folder, "doubles:predictor", *options, "--plot", "out.svg")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert len(result["loaded"]) == 6
    assert {"best", "recommendation", "cautions"} < result.keys()
    assert run.stderr == ""
    drawing = (folder / "out.svg").read_text()
    assert drawing.startswith("<?xml")


def test_numbers_of_workers_are_checked(folder: Path) -> None:
    run = command(folder, "doubles:predictor", "--workers", "1,two")
    assert run.returncode == 2
    assert "expected numbers from 1" in run.stderr
