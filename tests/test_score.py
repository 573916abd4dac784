"""``predictpool score``: every row once, in order, or set aside, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from predictpool import _score, _score_journal
from predictpool._command import CommandError
from predictpool._score import ScoreResult
from predictpool._score_journal import Journal, Output
from predictpool._tables import format_of, opened
from tests import needs

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]

# What the model says to a row depends on nothing but the row.
SCORES = """
    import os
    import signal

    import numpy as np
    from predictpool import FunctionPredictor

    def load():
        def predict(features):
            x = features["x"]
            if (x == 13).any():
                raise ValueError("thirteen is not answered")
            if (x == 666).any():
                os.kill(os.getpid(), signal.SIGKILL)
            words = np.array([word.decode()[::-1] for word in features["word"]], object)
            return {"tenth": x / 10, "powers": np.stack([x, x * x], axis=1), "reverse": words}
        return predict

    signature = {"x": (np.float32, ()), "word": (str, (), "default")}
    predictor = FunctionPredictor(load, row_wise=True, signature=signature)
"""
FORMATS = ["csv", "jsonl", pytest.param("parquet", marks=needs.pyarrow)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, on Python's path; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "scores") -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    importlib.invalidate_caches()


def score(
    source: str, output: str, target: str = "scores:predictor", **options: Any
) -> ScoreResult:
    defaults: dict[str, Any] = {
        "keep": (),
        "workers": 1,
        "request_rows": 16,
        "features": None,
        "start_timeout": 30.0,
        "report": lambda _counts, _part: None,
    }
    return _score.run(target, Path(source), Path(output), **(defaults | options))


def mistake(source: str, output: str, exit_code: int, **options: Any) -> str:
    with pytest.raises(CommandError) as raised:
        score(source, output, **options)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)
    return str(raised.value)


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def put(name: str, rows: list[dict[str, Any]]) -> str:
    """Write rows as a file of the format that its name tells."""
    if name.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(
            pa.Table.from_pylist(rows), name, row_group_size=max(10, len(rows) // 20)
        )
    elif name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        Path(name).write_text("\n".join(lines) + "\n")
    else:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def got(name: str) -> list[dict[str, Any]]:
    """Read rows from a file of the format that its name tells; arrays in CSV are JSON."""
    if name.endswith(".parquet"):
        from pyarrow import parquet

        found: list[dict[str, Any]] = parquet.read_table(name).to_pylist()
        return found
    if name.endswith(".jsonl"):
        return lines_of(name)
    with Path(name).open(newline="") as file:
        return [
            {name: json.loads(text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "x": number * 100} for number in range(count)]


# --- what is written ----------------------------------------------------------------


def test_csv_to_csv(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.csv").write_text('name,x,word\n"Doe, J.",3,abc\n\n"two\nlines",-0.5," ü"\n')
    result = score("in.csv", "out.csv", keep=("name",))
    assert Path("out.csv").read_text() == (
        "name,tenth,powers,reverse\n"
        '"Doe, J.",0.3,"[3.0, 9.0]",cba\n'
        '"two\nlines",-0.05,"[-0.5, 0.25]",ü \n'
    )
    assert (result.rows, result.scored, result.refused, result.set_aside) == (2, 2, 0, None)
    assert result.columns == ("name", "tenth", "powers", "reverse")
    assert (result.unused, result.resumed_after, result.incomplete) == ((), 0, "")
    assert sorted(path.name for path in folder.glob("*.*")) == ["in.csv", "out.csv", "scores.py"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("beginning", FORMATS)
def test_all_formats_are_read_and_written(folder: Path, beginning: str, ending: str) -> None:
    write(
        folder,
        """
        import numpy as np
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(
            lambda: lambda f: {"half": f["x"] / 2, "both": np.stack([f["x"], f["x"]], axis=1)},
            row_wise=True, signature={"x": (np.float32, ())},
        )
        """,
    )
    source = put(f"in.{beginning}", numbered(100))
    result = score(source, f"out.{ending}", keep=("id",))
    assert (result.rows, result.scored) == (100, 100)
    rows = [{**row, "id": int(row["id"])} for row in got(f"out.{ending}")]  # CSV has no types
    assert rows == [
        {"id": row["id"], "half": row["x"] / 2, "both": [row["x"], row["x"]]}
        for row in numbered(100)
    ]


@needs.pyarrow
def test_parquet_keeps_the_types(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    write(folder, SCORES)
    rows = pa.table({"when": pa.array([1, 2], pa.timestamp("ms")), "x": [1.0, None]})
    parquet.write_table(rows, "in.parquet")
    result = score("in.parquet", "out.parquet", keep=("when", "x"))
    assert parquet.read_schema("out.parquet") == pa.schema(
        [
            ("when", pa.timestamp("ms")),
            ("x", pa.float64()),
            ("tenth", pa.float32()),
            ("powers", pa.list_(pa.float32())),
            ("reverse", pa.string()),
        ]
    )
    assert (result.scored, result.refused) == (1, 1)
    (line,) = lines_of("out.parquet.refused.jsonl")
    assert (line["row"], line["given"]) == (2, {"when": "1970-01-01 00:00:00.002000", "x": None})


def test_json_has_no_nan_and_floats_are_as_short_as_they_can_be(folder: Path) -> None:
    write(
        folder,
        """
        import numpy as np
        from predictpool import FunctionPredictor

        def predict(x):
            return {"x": x, "log": np.log(x)[:, np.newaxis], "pair": np.stack([x, 1 / x], axis=1)}

        predictor = FunctionPredictor(lambda: predict, row_wise=True, signature=(np.float32, ()))
        """,
    )
    Path("in.jsonl").write_text("0.1\n-1\n0\n")
    score("in.jsonl", "out.jsonl")
    assert Path("out.jsonl").read_text() == (
        '{"x": 0.1, "log": -2.3025851, "pair": [0.1, 10.0]}\n'
        '{"x": -1.0, "log": null, "pair": [-1.0, -1.0]}\n'
        '{"x": 0.0, "log": null, "pair": [0.0, null]}\n'
    )
    score("in.jsonl", "out.csv")
    assert Path("out.csv").read_text().splitlines()[2] == '-1.0,nan,"[-1.0, -1.0]"'


@pytest.mark.parametrize("ending", FORMATS)
def test_lists_are_lists_whatever_the_other_rows_are(folder: Path, ending: str) -> None:
    write(
        folder,
        """
        from predictpool import FunctionPredictor

        def predict(x):
            return {"list": [[1] * int(count) for count in x], "array": x[:, None]}

        predictor = FunctionPredictor(lambda: predict, row_wise=True, signature=(int, ()))
        """,
    )
    Path("in.jsonl").write_text("1\n1\n2\n1\n")
    score("in.jsonl", f"out.{ending}", request_rows=2)
    assert got(f"out.{ending}") == [{"list": [1] * x, "array": x} for x in (1, 1, 2, 1)]


ARRAY = """
    import numpy as np
    from predictpool import FunctionPredictor

    def total(x):
        return x.sum(axis=1)

    predictor = FunctionPredictor(lambda: total, row_wise=True, signature=(np.float32, (3,)))
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.csv", "a,id,b,c\n1,7,2,3\n4,8,5,6\n"),
        ("in.csv", 'all,id\n"[1, 2, 3]",7\n"[4, 5, 6]",8\n'),
        ("in.jsonl", '{"id": 7, "a": 1, "b": 2, "c": 3}\n{"id": 8, "a": 4, "b": 5, "c": 6}\n'),
        ("in.jsonl", '{"id": 7, "x": [1, 2, 3]}\n{"id": 8, "x": [4, 5, 6]}\n'),
    ],
    ids=["columns", "a column of arrays", "values", "an array"],
)
def test_one_array_is_made_of_the_other_columns(folder: Path, name: str, text: str) -> None:
    write(folder, ARRAY)
    Path(name).write_text(text)
    score(name, "out.jsonl", keep=("id",))
    assert [(int(row["id"]), row["output"]) for row in lines_of("out.jsonl")] == [(7, 6), (8, 15)]


@pytest.mark.usefixtures("safe_at_once")
@pytest.mark.parametrize("shape", ["(3,)", "(None,)"])
def test_the_first_row_says_the_order_of_the_values_of_one_array(folder: Path, shape: str) -> None:
    write(
        folder,
        f"""
        import numpy as np
        from predictpool import FeatureSpec, FunctionPredictor

        signature = FeatureSpec(np.float32, {shape})
        predictor = FunctionPredictor(
            lambda: lambda rows: [list(row) for row in rows], row_wise=True, signature=signature
        )
        """,
    )
    first = ['{"a": }', "[1, 2, 3]", '{"b": 1, "a": 2, "c": 3}', '{"a": 2, "b": 1, "c": 3}']
    later = ['{"c": 3, "a": 2, "b": 1}', '{"a": 2, "b": 1, "d": 3}', '{"x": [1, 2, 3]}']
    Path("in.jsonl").write_text("\n".join([*first, *later]))
    with pytest.raises(Stop):
        score("in.jsonl", "out.jsonl", request_rows=4, workers=1, report=stop_after(4))
    assert score("in.jsonl", "out.jsonl").resumed_after == 4
    assert [row["output"] for row in lines_of("out.jsonl")] == [[1, 2, 3]] * 5
    refused = lines_of("out.jsonl.refused.jsonl")
    assert [line["line"] for line in refused] == [1, 6]
    assert refused[1]["reason"] == (
        "it has the values [a, b, d], expected [b, a, c], as in the first row of that kind"
    )


def test_lines_of_json_may_be_the_array_itself(folder: Path) -> None:
    write(folder, ARRAY)
    Path("in.jsonl").write_text("[1, 2, 3]\n[4, 5, 6]\n")
    score("in.jsonl", "out.jsonl")
    assert lines_of("out.jsonl") == [{"output": 6.0}, {"output": 15.0}]


def test_what_is_in_cells_becomes_what_the_signature_says(folder: Path) -> None:
    write(
        folder,
        """
        import numpy as np
        from predictpool import FeatureSpec, FunctionPredictor

        def load():
            return lambda features: {name + "_": values.astype(str) for name, values in
                                     features.items() if name != "rows"}

        text = np.dtype(object)
        signature = {
            "whole": np.int64, "yes": bool, "day": "datetime64[D]", "part": (np.float32, (1,)),
            "vector": (np.int32, (2,)), "age": FeatureSpec(np.dtype("float64"), missing=-1.0),
            "rows": FeatureSpec(text, ragged=True), "left": (np.float32, (), 5.0),
        }
        predictor = FunctionPredictor(load, row_wise=True, signature=signature)
        """,
    )
    Path("in.csv").write_text(
        "whole,yes,day,part,vector,age,rows\n"
        '9007199254740993,TRUE,2026-01-02, 0.5,"[1, 2]",,"[""a""]"\n'
    )
    result = score("in.csv", "out.jsonl")
    assert lines_of("out.jsonl") == [
        {
            "whole_": "9007199254740993",
            "yes_": "True",
            "day_": "2026-01-02",
            "part_": "0.5",
            "vector_": ["1", "2"],
            "age_": "-1.0",
            "left_": "5.0",
        }
    ], result


def test_a_model_that_is_not_row_wise_gets_each_row_alone(folder: Path) -> None:
    write(
        folder,
        """
        import numpy as np
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(
            lambda: lambda f: {"share": f["x"] / f["x"].sum()}, signature={"x": (np.float32, ())}
        )
        """,
    )
    put("in.csv", [{"x": number} for number in range(1, 41)])
    result = score("in.csv", "out.jsonl")
    assert lines_of("out.jsonl") == [{"share": 1.0}] * 40
    assert not result.row_wise


# --- rows that are refused ----------------------------------------------------------


MISSING = (
    "has None, which is a missing value, expected {} rows of shape (): give a value, or declare "
    "missing=... (what stands in for it) in its FeatureSpec"
)


def test_bad_rows_are_set_aside_with_their_lines_and_reasons(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.csv").write_bytes(
        b'x,word\n1,a\n2\nthree,c\n4,"d\nd"\n,e\n13,f\n7,\xff\n8,\n9,"i"i\n10,j\n1_1,k\n12,"l\n'
    )
    result = score("in.csv", "out.jsonl")
    assert [row["powers"][0] for row in lines_of("out.jsonl")] == [1, 4, 10]
    refused = lines_of("out.jsonl.refused.jsonl")
    assert [(line["line"], line["reason"], line["given"]) for line in refused] == [
        (3, "expected 2 cells, as in the header; it has 1", "2"),
        (4, "feature 'x' has the text 'three', expected float32 rows of shape ()", "three,c"),
        (7, f"feature 'x' {MISSING.format('float32')}", ",e"),
        (8, "the model raised ValueError: thirteen is not answered", "13,f"),
        (9, "it is not UTF-8", "7,\\xff"),
        (10, f"feature 'word' {MISSING.format('text')}", "8,"),
        (11, "it is no CSV: ',' expected after '\"'", '9,"i"i'),
        (13, "feature 'x' has the text '1_1', expected float32 rows of shape ()", "1_1,k"),
        (14, "it is no CSV: unexpected end of data", '12,"l'),
    ]
    assert (result.rows, result.scored, result.refused) == (12, 3, 9)
    assert result.set_aside == "out.jsonl.refused.jsonl"
    assert result.incomplete == (
        "9 rows were set aside with their reasons: out.jsonl.refused.jsonl"
    )


@pytest.mark.usefixtures("safe_at_once")
@pytest.mark.parametrize("end", ["", '"x', ',"a"\n' * 3, "long"])
def test_a_stray_quote_costs_its_own_line(folder: Path, end: str) -> None:
    write(folder, SCORES)
    count = 150_000 if end == "long" else 300  # far more than one cell may have
    rows = [f"{x + 1_000},a" for x in range(count)]
    strays = [0, 7, 8, 250]
    for stray in strays:
        rows[stray] = f'{stray},"a'
    rows[100:102] = ['500,"two', 'lines"']
    end = "" if end == "long" else end
    Path("in.csv").write_text("x,word\n" + "\n".join([*rows, end]))
    with pytest.raises(Stop):
        score("in.csv", "out.jsonl", request_rows=4096 if count > 300 else 16, report=stop_after(5))
    result = score("in.csv", "out.jsonl", request_rows=4096)
    scored = [row["powers"][0] for row in lines_of("out.jsonl")]
    assert scored == [float(row.split(",")[0]) for row in rows if "," in row and '"a' not in row]
    refused = lines_of("out.jsonl.refused.jsonl")
    assert [line["line"] for line in refused[:4]] == [stray + 2 for stray in strays]
    assert [line["given"] for line in refused[:4]] == [rows[stray] for stray in strays]
    assert refused[0]["reason"] == "it is no CSV: ',' expected after '\"' (7 lines further on)"
    assert result.rows == count - 1 + len(refused) - 4
    assert [line["given"] for line in refused[4:]] == end.splitlines()


def test_bad_lines_of_json_are_set_aside(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.jsonl").write_text(
        '{"x": 1}\n{"x": }\n[1]\n{"word": "a"}\n\n{"x": "1"}\n{"x": 2, "word": "\\ud800"}\n'
        '{"x": 16777217, "word": "b"}\n'
    )
    score("in.jsonl", "out.jsonl")
    assert [(row["powers"][0], row["reverse"]) for row in lines_of("out.jsonl")] == [
        (1, "tluafed"),
        (16777216, "b"),
    ]
    refused = lines_of("out.jsonl.refused.jsonl")
    assert [line["line"] for line in refused] == [2, 3, 4, 6, 7]
    for line, said in zip(
        refused,
        ["no JSON", "no JSON object", "'x' is missing", "convert text to numbers", "surrogates"],
        strict=True,
    ):
        assert said in line["reason"]


def test_lines_of_json_that_lack_what_is_kept_are_set_aside(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.jsonl").write_text('{"x": 1, "name": null}\n{"x": 2}\n{"x": 3, "nmae": "b"}\n')
    score("in.jsonl", "out.jsonl", keep=("name",))
    assert [row["name"] for row in lines_of("out.jsonl")] == [None]
    assert [line["reason"] for line in lines_of("out.jsonl.refused.jsonl")] == [
        "it lacks 'name', which --keep names",
        "it lacks 'name', which --keep names; did you mean 'nmae'?",
    ]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lines_of_json_that_are_too_deep_are_set_aside(folder: Path, ending: str) -> None:
    write(folder, SCORES)
    deep = [f"{'[' * depth}NaN{']' * depth}" for depth in (63, 64, 300, 600, 5000)]
    lines = [f'{{"x": {value}, "id": 0}}' for value in deep]
    lines += [f'{{"x": 1, "id": {value}}}' for value in deep]
    Path("in.jsonl").write_text("\n".join([*lines, '{"x": 2, "id": 7}']))
    result = score("in.jsonl", f"out.{ending}", keep=("id",))
    assert (result.rows, result.scored, result.refused) == (11, 2, 9)
    reasons = [line["reason"] for line in lines_of(f"out.{ending}.refused.jsonl")]
    assert reasons[1] == reasons[5] == ("it has arrays or objects in each other, more than 64 deep")


@needs.pyarrow
@pytest.mark.parametrize("keep", ["day", "days", "broken", "id"])
def test_rows_of_parquet_that_python_cannot_hold_are_set_aside(folder: Path, keep: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    write(folder, SCORES)
    dates = pa.array([0, 10_000_000, 1], pa.int32()).cast(pa.date32())
    offsets = pa.array([0, 1, 2, 3], pa.int32())
    broken = [pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    table = {
        "x": [1.0, 2.0, 3.0],
        "id": [1, 2, 3],
        "day": dates,
        "days": pa.ListArray.from_arrays(offsets, dates),
        "broken": pa.Array.from_buffers(pa.string(), 3, [None, *broken]),
    }
    parquet.write_table(pa.table(table), "in.parquet")
    result = score("in.parquet", "out.parquet", keep=(keep,))
    if keep == "id":  # nothing else is read
        assert (result.scored, result.unused) == (3, ("day", "days", "broken"))
        return
    assert [row["powers"][0] for row in got("out.parquet")] == [1, 3]
    (line,) = lines_of("out.parquet.refused.jsonl")
    assert line["row"] == 2
    assert line["reason"].startswith("it has values that Python has not: ")
    given = {"day": "29349-01-26", "days": "[ 29349-01-26 ]", "broken": '"\ufffd"'}
    assert line["given"] == {"x": "2", keep: given[keep]}


@needs.pyarrow
def test_parquet_that_has_none_of_the_features(folder: Path) -> None:
    write(
        folder,
        """
        import numpy as np
        from predictpool import FunctionPredictor
        signature = {"x": (np.float32, (), 5.0)}
        predictor = FunctionPredictor(
            lambda: lambda f: f["x"] * 2, row_wise=True, signature=signature
        )
        """,
    )
    result = score(put("in.parquet", [{"id": 1}, {"id": 2}]), "out.jsonl")
    assert (result.scored, result.unused) == (2, ("id",))
    assert lines_of("out.jsonl") == [{"output": 10.0}] * 2


@pytest.mark.faults
def test_rows_that_kill_their_workers_are_set_aside_and_all_others_scored(folder: Path) -> None:
    write(folder, SCORES)
    killers = range(32, 40)  # more of them than workers may die before a slot is given up
    put("in.csv", [{"x": 666 if number in killers else number} for number in range(40)])
    result = score("in.csv", "out.jsonl")
    scored = [row["powers"][0] for row in lines_of("out.jsonl")]
    assert scored == [x for x in range(40) if x != 13 and x not in killers]
    refused = lines_of("out.jsonl.refused.jsonl")
    assert [line["line"] for line in refused] == [15, *(number + 2 for number in killers)]
    assert all("SIGKILL" in line["reason"] for line in refused[1:])
    assert result.restarts >= 2 * len(killers)


# --- mistakes -----------------------------------------------------------------------


def test_names_without_a_known_ending(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(1))
    assert mistake("in.txt", "out.csv", 2) == (
        "INPUT is 'in.txt', whose format is not known: its name has to end with .csv, .jsonl, "
        ".ndjson, .parquet"
    )
    assert mistake("in.csv", "out", 2).startswith("OUTPUT is 'out', whose format is not known")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("ending", FORMATS)
def test_an_input_that_is_not_there(ending: str) -> None:
    assert mistake(f"in.{ending}", "out.csv", 2).startswith("INPUT cannot be read: ")


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert mistake("in.parquet", "out.csv", 2).startswith(
        'Parquet files need pyarrow: pip install "predictpool[score]" (import of pyarrow'
    )


@pytest.mark.parametrize(
    ("header", "keep", "line"),
    [
        ("y,wrd", (), "INPUT lacks the column 'x' (float32 rows of shape ()), it has [y, wrd]"),
        (
            "x,name",
            ("nam",),
            "--keep nam: INPUT has no such column, it has [x, name]; did you mean 'name'?",
        ),
        (
            "x,tenth",
            ("tenth",),
            (
                "--keep tenth: the model has an output of that name: rename the column of INPUT, "
                "or leave it out"
            ),
        ),
        ("x,x", (), "in.csv has two columns named 'x': rename one"),
    ],
    ids=["lacks a feature", "lacks what is kept", "has an output's name", "has one twice"],
)
def test_columns_that_do_not_fit(
    folder: Path, header: str, keep: tuple[str, ...], line: str
) -> None:
    write(folder, SCORES)
    Path("in.csv").write_text(f"{header}\n1,2\n")
    assert mistake("in.csv", "out.csv", 2, keep=keep) == line
    assert not Path("out.csv.unfinished").exists()


def test_columns_for_an_array_have_to_be_as_many(folder: Path) -> None:
    write(folder, ARRAY)
    Path("in.csv").write_text("a,b\n1,2\n")
    assert mistake("in.csv", "out.csv", 2) == (
        "INPUT has the columns [a, b]: there are 2 values besides those that are kept, and the "
        "predictor takes one array, float32 rows of shape (3,)"
    )


def test_a_file_without_a_header(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.csv").write_text("")
    assert mistake("in.csv", "out.csv", 2).startswith("in.csv has no header in its first line")


def test_a_file_without_rows(folder: Path) -> None:
    write(folder, SCORES)
    Path("in.csv").write_text("x\n")
    assert score("in.csv", "out.csv").rows == 0
    assert Path("out.csv").read_text() == ""


def test_an_output_that_is_there_is_not_touched(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(1))
    Path("out.csv").write_text("precious")
    assert mistake("in.csv", "out.csv", 2) == (
        "out.csv is there already: remove it, or name another OUTPUT"
    )
    assert Path("out.csv").read_text() == "precious"


@pytest.mark.usefixtures("safe_at_once")
def test_what_somebody_else_put_into_the_folder_is_not_touched(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(40))
    precious = Path("out.csv.unfinished/precious")
    precious.parent.mkdir()
    precious.write_text("mine")
    line = (
        "out.csv.unfinished holds [precious], which is of no run: move that away, or name another "
        "OUTPUT"
    )
    assert mistake("in.csv", "out.csv", 2) == line
    Path("out.csv").write_text("old")
    assert mistake("in.csv", "out.csv", 2) == line
    Path("out.csv").unlink()
    precious.unlink()

    def report(_now: Journal, _part: float) -> None:
        precious.write_text("mine")

    assert score("in.csv", "out.csv", report=report).scored == 40
    assert [path.read_text() for path in precious.parent.iterdir()] == ["mine"]


def test_a_folder_that_is_not_there(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(1))
    assert mistake("in.csv", "nowhere/out.csv", 2).startswith("OUTPUT cannot be written: ")


def test_a_predictor_of_which_nothing_is_known(folder: Path) -> None:
    write(
        folder,
        "from predictpool import FunctionPredictor\n"
        "predictor = FunctionPredictor(lambda: lambda x: x)",
    )
    put("in.csv", numbered(1))
    assert mistake("in.csv", "out.csv", 2) == (
        "nobody knows what scores:predictor takes: declare its signature="
    )


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("lambda f: {'all': np.float32(f['x'].sum())}", "the output 'all' has the shape ()"),
        ("lambda f: {'odd': [{1, 2}] * len(f['x'])}", "a value of the type set, expected numbers"),
    ],
    ids=["no rows", "no numbers or text"],
)
def test_outputs_that_cannot_be_written(folder: Path, function: str, said: str) -> None:
    write(
        folder,
        f"""
        import numpy as np
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(lambda: {function}, signature={{"x": (np.float32, ())}})
        """,
    )
    put("in.csv", numbered(2))
    assert said in mistake("in.csv", "out.csv", 1)
    assert not Path("out.csv.unfinished").exists()


# --- going on -----------------------------------------------------------------------


class Stop(Exception):
    """Ends a run in the middle, as a kill would."""


def stop_after(rows: int) -> Callable[[Journal, float], None]:
    def report(now: Journal, _part: float) -> None:
        if now.rows >= rows:
            raise Stop

    return report


@pytest.fixture
def safe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every chunk be safe when it is written."""
    monkeypatch.setattr(_score_journal, "COMMIT_SECONDS", 0.0)


@pytest.mark.usefixtures("safe_at_once")
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("beginning", FORMATS)
def test_what_is_torn_is_cut_off_and_the_rest_is_scored(
    folder: Path, beginning: str, ending: str
) -> None:
    write(folder, SCORES)
    source = put(f"in.{beginning}", [{"x": number} for number in range(100)])
    whole = score(source, f"whole.{ending}")
    with pytest.raises(Stop):
        score(source, f"out.{ending}", report=stop_after(40))
    parts = Path(f"out.{ending}.unfinished")
    for torn in ("rows", "refused", "rows.new"):
        with (parts / torn).open("ab") as file:
            file.write(b"half a ro")
    (parts / "journal.new").write_bytes(b"{")
    assert not Path(f"out.{ending}").exists()
    result = score(source, f"out.{ending}")
    assert result.resumed_after == 48
    assert (result.rows, result.scored, result.refused) == (whole.rows, whole.scored, 1)
    assert got_text(f"out.{ending}") == got_text(f"whole.{ending}")
    refused = [Path(f"{name}.{ending}.refused.jsonl").read_text() for name in ("out", "whole")]
    assert refused[0] == refused[1]
    assert not parts.exists()


def got_text(name: str) -> Any:
    return got(name) if name.endswith(".parquet") else Path(name).read_text()


@pytest.mark.usefixtures("safe_at_once")
def test_what_has_changed_is_named(folder: Path) -> None:
    write(folder, SCORES + "\n    other = predictor\n")
    put("in.csv", numbered(100))
    with pytest.raises(Stop):
        score("in.csv", "out.csv", report=stop_after(40))
    start = "out.csv.unfinished holds an unfinished run, and "
    end = "): go on with what it was, or remove that folder to begin anew"
    assert mistake("in.csv", "out.csv", 2, target="scores:other") == (
        f"{start}MODULE:PREDICTOR has changed since (it was 'scores:predictor', now it is "
        f"'scores:other'{end}"
    )
    assert "--keep has changed since (it was '', now it is 'id')" in mistake(
        "in.csv", "out.csv", 2, keep=("id",)
    )
    with Path("in.csv").open("a") as file:
        file.write("100,100\n")
    assert "the size of INPUT has changed since" in mistake("in.csv", "out.csv", 2)


def test_an_output_belongs_to_one_run(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(40))
    said = []

    def report(_now: Journal, _part: float) -> None:
        said.append(mistake("in.csv", "out.csv", 2))

    assert score("in.csv", "out.csv", report=report).scored == 40
    assert set(said) == {"another run writes out.csv: wait for it, or stop it"}


def test_an_output_that_came_while_this_ran_is_not_touched(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(20))

    def report(_now: Journal, _part: float) -> None:
        Path("out.csv").write_text("precious")

    line = (
        "out.csv was not there when this began: move it away, and the same command puts its own "
        "there"
    )
    assert mistake("in.csv", "out.csv", 1, report=report) == line
    assert mistake("in.csv", "out.csv", 1) == line
    assert Path("out.csv").read_text() == "precious"
    Path("out.csv").unlink()
    result = score("in.csv", "out.csv")
    assert (result.resumed_after, result.scored, result.workers) == (20, 20, 0)
    assert len(Path("out.csv").read_text().splitlines()) == 21


@pytest.mark.usefixtures("safe_at_once")
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", numbered(100))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def report(now: Journal, _part: float) -> None:
        if now.rows == 32:  # from here on the output cannot grow any more
            resource.setrlimit(resource.RLIMIT_FSIZE, (now.written + 10, before[1]))

    try:
        line = mistake("in.csv", "out.csv", 1, report=report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line == (
        "[Errno 27] File too large: when that is mended, the same command goes on after row 32"
    )
    assert score("in.csv", "out.csv").resumed_after == 32
    assert len(Path("out.csv").read_text().splitlines()) == 101


@pytest.mark.parametrize("ending", FORMATS)
def test_killed_at_any_step_of_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    put("in.jsonl", numbered(3))
    for step in itertools.count(1):
        target = Path(f"out-{step}.{ending}")
        with monkeypatch.context() as patched, contextlib.suppress(Stop):
            stop_at(step, patched)
            to_the_end(target)
            break
        if not target.exists() or Path(f"{target}.unfinished/journal").exists():
            to_the_end(target)
        elif Path(f"{target}.unfinished").exists():  # all that was left to do was to remove it
            with pytest.raises(CommandError, match="is there already"):
                to_the_end(target)
        assert [row["output"] for row in got(str(target))] == [1.5, 2.5]
        (line,) = lines_of(f"{target}.refused.jsonl")
        assert line == {"line": 2, "reason": "odd", "given": '{"id": 1, "x": 100}'}
        assert not Path(f"{target}.unfinished").exists()
    assert step > 8
    assert len(list(folder.iterdir())) == 1 + 2 * step


def stop_at(step: int, patched: pytest.MonkeyPatch) -> None:
    """Have it end before or after one of the things that are done to files."""
    left = [step]

    def pass_by() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            pass_by()
            result = original(*arguments, **options)
            pass_by()
            return result

        return call

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "rmdir")):
        patched.setattr(owner, name, stopping(getattr(owner, name)))


def to_the_end(target: Path) -> None:
    """Write what a run writes: two rows that are scored, and one that is refused."""
    with contextlib.closing(opened(Path("in.jsonl"), "jsonl")) as source:
        first, second, third = source.rows()
        with contextlib.closing(
            Output(target, format_of(target, "OUTPUT"), source, (), {"INPUT": "in.jsonl"})
        ) as output:
            if not output.journal.finished:
                output.write(
                    [([first, third], {"output": np.array([1.5, 2.5])})], [(second, "odd")]
                )
            output.finish()


# --- the command --------------------------------------------------------------------


def command(folder: Path, *arguments: str, commit_seconds: float = 0.0) -> subprocess.Popen[str]:
    # -P: as with the console script, the current directory is not on the path by itself.
    code = f"""if True:
        from predictpool import _score_journal
        from predictpool._cli import main
        _score_journal.COMMIT_SECONDS = {commit_seconds}
        main()
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, "score", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# The worker that first meets one of these rows says so, and stays there until it is killed.
WAITS = """
    import os
    import signal
    from pathlib import Path

    import numpy as np
    from predictpool import FunctionPredictor

    def meet(row):
        try:
            Path(f"met-{row}").touch(exist_ok=False)
        except FileExistsError:
            return
        Path("said").write_text(f"{os.getpid()}\\n")
        signal.pause()

    def load():
        def predict(features):
            for row in (20_000, 30_000):
                if (features["x"] == row).any():
                    meet(row)
            return {"square": features["x"].astype(np.int64) ** 2}

        return predict

    predictor = FunctionPredictor(load, row_wise=True, signature={"x": np.int32})
"""


@pytest.fixture
def said(folder: Path) -> Iterator[Callable[[], int]]:
    """Wait for a worker to meet a row, and return its pid."""
    write(folder, WAITS)
    os.mkfifo(folder / "said")
    heard = os.open(folder / "said", os.O_RDWR)
    yield lambda: int(os.read(heard, 100))
    os.close(heard)


def safe_rows(folder: Path) -> int:
    journal = json.loads((folder / "out.csv.unfinished" / "journal").read_text())
    return int(journal["rows"])


@pytest.mark.faults
def test_50000_rows_while_a_worker_and_the_command_itself_are_killed(
    folder: Path, said: Callable[[], int]
) -> None:
    put("in.csv", [{"id": f"row-{number}", "x": number} for number in range(50_000)])
    arguments = ("scores:predictor", "in.csv", "out.csv", "--keep", "id", "--workers", "2")

    run = command(folder, *arguments)
    os.kill(said(), signal.SIGKILL)
    said()  # all others went on, until row 30,000
    run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not (folder / "out.csv").exists()
    safe = safe_rows(folder)
    assert 20_000 < safe <= 30_000

    run = command(folder, *arguments, "--json")
    printed, errors = run.communicate(timeout=50)
    assert run.returncode == 0, errors
    result = json.loads(printed)
    assert result["resumed_after"] == safe
    assert (result["rows"], result["scored"], result["refused"]) == (50_000, 50_000, 0)
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines == ["id,square", *(f"row-{x},{x * x}" for x in range(50_000))]
    assert not (folder / "out.csv.unfinished").exists()


@pytest.mark.faults
def test_ctrl_c_ends_it_and_says_how_to_go_on(folder: Path, said: Callable[[], int]) -> None:
    put("in.csv", [{"x": number} for number in range(25_000)])
    arguments = ("scores:predictor", "in.csv", "out.csv", "--workers", "1")
    run = command(folder, *arguments, commit_seconds=3600.0)
    said()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    safe = safe_rows(folder)
    assert 19_000 < safe <= 20_000  # what is answered may not be written yet
    assert errors == (
        f"predictpool: stopped after {safe:,} rows: the same command goes on from there\n"
    )
    run = command(folder, *arguments)
    printed, errors = run.communicate(timeout=40)
    assert run.returncode == 0, errors
    assert f"after the {safe:,} rows of an earlier run" in printed
    assert len((folder / "out.csv").read_text().splitlines()) == 25_001


def test_the_exit_code_tells_that_rows_were_set_aside(folder: Path) -> None:
    write(folder, SCORES)
    put("in.csv", [{"x": number} for number in range(20)])
    run = command(folder, "scores:predictor", "in.csv", "out.csv", "--json", "--workers", "1")
    said, errors = run.communicate(timeout=40)
    assert run.returncode == 3
    assert json.loads(said)["refused"] == 1
    assert errors == "predictpool: 1 row was set aside with its reason: out.csv.refused.jsonl\n"


def test_a_mistake_is_one_line(folder: Path) -> None:
    write(folder, SCORES)
    run = command(folder, "scores:predictor", "in.csv", "out.csv")
    said, errors = run.communicate(timeout=40)
    assert (run.returncode, said) == (2, "")
    assert (
        errors
        == "predictpool: INPUT cannot be read: [Errno 2] No such file or directory: 'in.csv'\n"
    )


def test_people_see_how_far_it_is() -> None:
    others = set(threading.enumerate())
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    with _score.shown(terminal, "Scoring in.csv") as report:
        report(Journal({}, rows=1_000), 0.0)
        report(Journal({}, rows=21_000, scored=20_997, refused=3), 0.25)
    for thread in set(threading.enumerate()) - others:  # rich does not wait for its own
        thread.join()
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "Scoring in.csv" in shown
    assert " 25%" in shown
    assert re.search(r" 21,000 rows, 3 set aside, [\d,]+ rows/s ", shown)


def test_people_get_a_table() -> None:
    result = ScoreResult(
        target="income:predictor",
        input="in.csv",
        output="out.csv",
        rows=50_000,
        scored=49_998,
        refused=2,
        set_aside="out.csv.refused.jsonl",
        resumed_after=20_000,
        columns=("id", "probabilities"),
        unused=("label",),
        row_wise=False,
        workers=2,
        restarts=1,
        seconds=12.34,
        rows_per_second=2431.1,
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(_score.table(result))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines == [
        "rows       50,000 = 49,998 scored + 2 set aside",
        "output     out.csv, with id, probabilities",
        "set aside  out.csv.refused.jsonl",
        "not used   label",
        "resumed    after the 20,000 rows of an earlier run",
        "row-wise   no: each row was a call of its own, which takes longer",
        "workers    2; 1 restarted",
        "time       12.3 s, 2,431 rows/s",
    ]


TRAIN = """if True:
    import tensorflow as tf
    from income import build_estimator

    def rows():
        columns = {"age": [20.0, 60.0], "occupation": ["Sales", "Tech-support"]}
        return tf.data.Dataset.from_tensors((columns, [0, 1]))

    build_estimator().train(rows)
"""


@needs.estimators
@pytest.mark.timeout(120)  # TensorFlow on a busy machine
def test_the_documentation_shows_what_happens(folder: Path) -> None:
    page = Path(__file__).parents[1].joinpath("docs/how-to/score.md").read_text()
    blocks = {
        language: re.search(f"```{language}\n(.*?)```", page, re.DOTALL)
        for language in ("python", "text", "console", "json")
    }
    income, people, shown, refused = (block[1] for block in blocks.values() if block)
    (folder / "income.py").write_text(income)
    (folder / "people.csv").write_text(people)
    training = [sys.executable, "-c", TRAIN]
    subprocess.run(training, cwd=folder, check=True, capture_output=True, timeout=100)
    run = command(folder, *shown.split()[2:])
    printed, errors = run.communicate(timeout=100)
    assert run.returncode == 3, errors
    assert "3 = 2 scored + 1 set aside" in printed
    assert [row["id"] for row in got("scores.csv")] == [1, 2]
    assert Path("scores.csv.refused.jsonl").read_text() == refused


@pytest.mark.parametrize("ending", FORMATS)
def test_memory_does_not_grow_with_the_file(folder: Path, ending: str) -> None:
    write(folder, WAITS)
    code = f"""if True:
        import re
        from pathlib import Path
        from predictpool import _score, _tables
        _tables.GROUP_BATCHES = 16
        for name in ("few", "many"):
            files = Path(f"{{name}}.{ending}"), Path(f"{{name}}.out.{ending}")
            _score.run("scores:predictor", *files, keep=["pad"], workers=1, request_rows=256,
                features=None, start_timeout=30, report=lambda now, part: None)
            print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    """
    for name, rows in (("few", 10_000), ("many", 60_000)):
        put(f"{name}.{ending}", [{"x": x % 1000, "pad": f"{x:0400}"} for x in range(rows)])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},  # others keep what is freed
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr
    few, many = map(int, run.stdout.split())
    # 50,000 rows more are 20 MB as text, and 40 MB or more as Python has them.
    assert many - few < 15_000
