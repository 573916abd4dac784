"""``predictpool check``, as its user meets it: what works, and each mistake in one line."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from predictpool import _check
from predictpool._check import CheckResult, Feature, Output
from predictpool._command import CommandError
from tests import needs

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]

INCOME = """
    import numpy as np
    from predictpool import FunctionPredictor

    SIGNATURE = {"age": (np.float32, (3,)), "job": (str, (), "none"), "ids": (np.int64, (None,))}

    def load():
        return lambda features: {"score": features["age"].sum(axis=1), "job": features["job"]}

    predictor = FunctionPredictor(load, row_wise=True, signature=SIGNATURE)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, on Python's path; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, **modules: str) -> None:
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))


def check(target: str, *, features: str | None = None, start_timeout: float = 30.0) -> CheckResult:
    return _check.run(target, features=features, start_timeout=start_timeout)


def mistake(target: str, exit_code: int, **options: Any) -> str:
    """Return the line of a mistake, without numbers that nobody can know."""
    with pytest.raises(CommandError) as raised:
        check(target, **options)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)
    return re.sub(r"(pid|worker) \d+", r"\1 N", str(raised.value))


def command(
    folder: Path, *arguments: str, code: str = "from predictpool._cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    # -P: as with the console script, the current directory is not on the path by itself.
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "check", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# --- what works --------------------------------------------------------------------


def test_it_tells_what_the_predictor_takes_and_returns_and_what_it_costs(folder: Path) -> None:
    write(folder, income=INCOME)
    result = check("income:predictor")
    assert result.target == "income:predictor"
    assert result.predictor == "FunctionPredictor"
    assert result.method is None
    assert result.features == (
        Feature("age", "float32", (3,), required=True, default=None),
        Feature("job", "text", (), required=False, default="none"),
        Feature("ids", "int64", (None,), required=True, default=None),
    )
    assert result.outputs == (Output("score", "float32", ()), Output("job", "text", ()))
    assert (result.row_wise, result.warning, result.rows) == (True, "", 1)
    assert result.start_seconds > result.load_seconds > 0
    assert result.predict_seconds is not None
    assert result.predict_seconds > 0
    assert result.pss_bytes > result.uss_bytes > 1e6
    assert set(result.cores) <= os.sched_getaffinity(0)
    assert result.threads == 1
    assert result.not_asked == ""


def test_a_predictor_may_be_an_attribute_of_an_attribute(folder: Path) -> None:
    write(folder, income=INCOME + "\n    class models:\n        best = predictor\n")
    assert check("income:models.best").predictor == "FunctionPredictor"


def test_without_a_signature_it_is_asked_with_the_features_that_are_named(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(lambda: lambda x: [len(x), type(x[0])])
        example = ["a", "b"]
        """,
    )
    result = check("income:predictor", features="income:example")
    assert result.features is None
    assert result.rows == 2
    assert result.outputs == (Output("", "list", None),)


def test_named_features_warm_it_up_too(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor

        def load():
            return lambda x: {"inverse": [1 / item for item in x.tolist()]}

        predictor = FunctionPredictor(load, signature=(float, ()))
        example = [4.0]
        """,
    )
    assert check("income:predictor", features="income:example").rows == 1


def test_without_a_signature_and_features_it_is_loaded_and_the_line_says_so(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(lambda: lambda x: x)
        """,
    )
    result = check("income:predictor")
    assert (result.features, result.outputs, result.predict_seconds) == (None, None, None)
    assert result.load_seconds > 0
    assert result.not_asked == (
        "income:predictor was loaded, but not asked: nobody knows what it takes. Declare its "
        "signature=, or name features that it can take: --features MODULE:FEATURES"
    )


def test_outputs_without_rows_are_shown_whole_with_the_warning_of_the_worker(folder: Path) -> None:
    write(
        folder,
        income="""
        import numpy as np
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(
            lambda: lambda x: np.zeros((2, 5)), row_wise=True, signature=(np.float32, ())
        )
        """,
    )
    result = check("income:predictor")
    assert not result.row_wise
    assert "do not have the rows on their first axis" in result.warning
    assert result.outputs == (Output("", "float64", (2, 5)),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-m", "tests.models", str(folder)], check=True)
    return folder


@needs.estimators
@pytest.mark.timeout(300)  # TensorFlow on a busy machine
@pytest.mark.parametrize("method", ["generator", "session"])
def test_an_estimator_is_checked_with_its_method(folder: Path, trained: Path, method: str) -> None:
    write(
        folder,
        income=f"""
        from functools import partial
        from pathlib import Path
        from predictpool import EstimatorPredictor
        from tests import models
        build = partial(models.build_regressor, Path({str(trained)!r}))
        predictor = EstimatorPredictor(build, method={method!r})
        """,
    )
    result = check("income:predictor", start_timeout=200)
    assert result.method == method
    assert result.features is not None
    assert {feature.name: (feature.dtype, feature.shape) for feature in result.features} == {
        "number": ("float32", (1,)),
        "vector": ("float32", (4,)),
        "word": ("text", ()),
    }
    assert result.outputs == (Output("predictions", "float32", (1,)),)
    assert result.row_wise


# --- what the user names -----------------------------------------------------------


@pytest.mark.parametrize("target", ["income", "income:", ":predictor", "income:make()", "a..b:c"])
def test_what_is_not_two_names_with_a_colon(target: str) -> None:
    assert mistake(target, 2) == (
        f"{target!r} is not MODULE:PREDICTOR, two names with a colon between them, "
        "for example models.income:predictor"
    )


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("./models/income.py:best", "name the module as Python imports it, models.income:best"),
        ("income.py", "name the module as Python imports it, income:PREDICTOR"),
        (
            "../income.py:best",
            (
                "change into a folder above that file and name the module as Python imports it, "
                "for example income:best"
            ),
        ),
    ],
)
def test_a_path(target: str, line: str) -> None:
    assert mistake(target, 2) == f"{target.partition(':')[0]!r} is a path: {line}"


def test_a_module_that_is_not_there(folder: Path) -> None:
    write(folder, income=INCOME)
    where = f"in {folder} or elsewhere on Python's path"
    assert mistake("incme:predictor", 2) == (
        f"there is no module 'incme' {where}: did you mean 'income'?"
    )
    assert mistake("zebra:predictor", 2) == (
        f"there is no module 'zebra' {where}: change into its folder, or set PYTHONPATH"
    )


def test_a_module_that_is_not_in_its_package(folder: Path) -> None:
    (folder / "models").mkdir()
    write(folder / "models", __init__="", income=INCOME)
    assert mistake("models.incme:predictor", 2) == (
        "there is no module 'models.incme' in 'models': did you mean 'income'?"
    )
    assert mistake("models.income.x:predictor", 2) == (
        "there is no module 'models.income.x' in 'models.income': correct the name"
    )


def test_a_module_that_imports_what_is_missing(folder: Path) -> None:
    write(folder, income="import json\nimport no_such_module\n")
    assert mistake("income:predictor", 1) == (
        f"income imports 'no_such_module', which {sys.executable} does not find (income.py:2): "
        "install it there, or correct the import"
    )


def test_a_package_that_imports_what_is_missing_in_itself(folder: Path) -> None:
    (folder / "models").mkdir()
    write(folder / "models", __init__="import models.income", other="")
    assert mistake("models.income:predictor", 1).startswith(
        f"models.income imports 'models.income', which {sys.executable} does not find "
        f"({Path('models', '__init__.py')}:1)"
    )


def test_a_module_that_imports_tensorflow_where_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    write(folder, income="import tensorflow")
    assert mistake("income:predictor", 1) == (
        f"income imports 'tensorflow', which {sys.executable} does not find (income.py:1): "
        'pip install "predictpool[estimator]" (Python 3.11)'
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nx = 1 / 0", "income cannot be imported: ZeroDivisionError: division by zero ({}:2)"),
        ("def f(:", "income cannot be imported: SyntaxError: invalid syntax ({}:1)"),
        (
            "import json\njson.loads('')",
            (
                "income cannot be imported: JSONDecodeError: "
                "Expecting value: line 1 column 1 (char 0) ({}:2)"
            ),
        ),
        ("raise ValueError('''\n  a\nb''')", "income cannot be imported: ValueError: a ({}:1)"),
        (
            "import sys\nsys.exit(3)",
            (
                "income ends the program while it is imported ({}:2): put what it does as a "
                'program under `if __name__ == "__main__":`'
            ),
        ),
    ],
    ids=["raises", "is no Python", "raises in a library", "says much", "exits"],
)
def test_a_module_that_cannot_be_imported(folder: Path, text: str, line: str) -> None:
    write(folder, income=text)
    assert mistake("income:predictor", 1) == line.format("income.py")


def test_an_attribute_that_is_not_there(folder: Path) -> None:
    write(folder, income=INCOME + "\n    other = predictor\n", empty="", features="rows = [1.0]")
    assert mistake("income:predicter", 2) == (
        "income (income.py) has no 'predicter': did you mean 'predictor'? "
        "it has the predictors predictor, other"
    )
    assert mistake("empty:best", 2) == (
        "empty (empty.py) has no 'best': it has no predictor, so make one there, "
        "predictor = EstimatorPredictor(...)"
    )
    assert mistake("income:predictor.best", 2) == (
        "income:predictor has no 'best': correct the name"
    )
    assert mistake("income:predictor", 2, features="features:row") == (
        "features (features.py) has no 'row': did you mean 'rows'?"
    )


NOT_PREDICTORS = {
    "build": (
        "def build(): ...",
        (
            "a function, not a predictor: wrap it, predictor = EstimatorPredictor(build) if it "
            "returns an Estimator, FunctionPredictor(build) if it returns a function that predicts"
            "; if it returns a predictor, name that, predictor = build()"
        ),
    ),
    "FunctionPredictor": (
        "from predictpool import FunctionPredictor",
        (
            "a class, not a predictor: name a predictor made from it, "
            "predictor = FunctionPredictor(...)"
        ),
    ),
    "estimator": (
        # As those of TensorFlow are, whose import takes seconds.
        """
        Estimator = type("Estimator", (), {"__module__": "tensorflow_estimator.python.estimator"})
        class Mine(Estimator): ...
        estimator = Mine()
        """,
        (
            "an Estimator (Mine), not a predictor: it does not pickle, so wrap the function that "
            "builds it, predictor = EstimatorPredictor(build_estimator)"
        ),
    ),
    "pool": (
        """
        from predictpool import FunctionPredictor, PredictorPool
        pool = PredictorPool(FunctionPredictor(lambda: abs))
        """,
        "a pool, not a predictor: name the predictor that it was given",
    ),
    "half": (
        """
        class Half:
            def load(self, device): ...
            def predict(self, features): ...
        half = Half()
        """,
        "of the type Half, not a predictor: it lacks close, preload, row_wise, signature",
    ),
    "rows": (
        "rows = [1.0]",
        (
            "of the type list, not a predictor: name an EstimatorPredictor, SavedModelPredictor, "
            "KerasPredictor, FunctionPredictor or a Predictor of your own"
        ),
    ),
    "model": (
        """
        class Sequential: ...
        Sequential.__module__ = "keras.src.models.sequential"
        model = Sequential()
        """,
        (
            "a Keras model (Sequential), not a predictor: it is loaded in the worker, so give its "
            'file or the function that makes it, predictor = KerasPredictor("model.keras")'
        ),
    ),
}


@pytest.mark.parametrize("name", list(NOT_PREDICTORS))
def test_an_attribute_that_is_no_predictor(folder: Path, name: str) -> None:
    text, line = NOT_PREDICTORS[name]
    write(folder, income=text)
    assert mistake(f"income:{name}", 2) == f"income:{name} is {line}"


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (
            "words",
            (
                "the array of features has the value 'a' of type str in row 0, expected float32 "
                "rows of shape (): convert text to numbers first, or declare the feature as text "
                "(str)"
            ),
        ),
        (
            "named",
            "features are a mapping of [x], expected one array: float32 rows of shape ()",
        ),
    ],
)
def test_features_that_do_not_fit(folder: Path, features: str, line: str) -> None:
    write(
        folder,
        income="""
        import numpy as np
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(lambda: abs, signature=(np.float32, ()))
        words, named = np.array(["a"], object), {"x": [1.0]}
        """,
    )
    assert mistake("income:predictor", 2, features=f"income:{features}") == (
        f"--features income:{features}: {line}"
    )


# --- the predictor in a worker -----------------------------------------------------

WORKER_MISTAKES = {
    "does not pickle": (
        "predictor = FunctionPredictor(lambda lock=threading.Lock(): lock)",
        (
            "the predictor cannot be sent to a worker (cannot pickle '_thread.lock' object): make "
            "in the worker what does not pickle, in the function that builds or loads the model"
        ),
    ),
    "has a wrong signature": (
        "predictor = FunctionPredictor(lambda: abs); predictor.signature = {'x': 3}",
        (
            "the predictor's signature is {'x': 3}, expected a Signature, 'infer' or None: "
            "Signature.declared({...}) makes one"
        ),
    ),
    "does not load": (
        """
        def load():
            raise FileNotFoundError("no checkpoint in 'models'\\n\\nreally")
        predictor = FunctionPredictor(load)
        """,
        (
            "the worker of slot 0 (pid N) could not load its predictor: FileNotFoundError: "
            "no checkpoint in 'models'"
        ),
    ),
    "says nothing": (
        """
        def load():
            raise ValueError
        predictor = FunctionPredictor(load)
        """,
        "the worker of slot 0 (pid N) could not load its predictor: ValueError",
    ),
    "says nothing when it predicts": (
        """
        def load():
            calls = []
            def predict(x):
                class Odd(Exception): ...
                calls.append(x)
                if len(calls) > 1:
                    raise Odd
                return x
            return predict
        predictor = FunctionPredictor(load, signature=(np.float32, ()))
        """,
        (
            "predict failed: the model raised income.load.<locals>.predict.<locals>.Odd in slot 0, "
            "pid N"
        ),
    ),
    "lacks a library": (
        """
        def load():
            import no_such_module
        predictor = FunctionPredictor(load)
        """,
        (
            "the worker of slot 0 (pid N) could not load its predictor: ModuleNotFoundError: "
            "No module named 'no_such_module'"
        ),
    ),
    "does not warm up": (
        """
        def load():
            return lambda features: features["height"]
        predictor = FunctionPredictor(load, signature={"age": (np.float32, (2,))})
        """,
        (
            "the warm-up failed on age: float32[1, 2]. It said: KeyError: 'height'. If it is such "
            "features that the model cannot take, give the pool warmup= with some that it can. "
            "Here, name them with --features MODULE:FEATURES"
        ),
    ),
    "is killed": (
        "predictor = FunctionPredictor(lambda: os.kill(os.getpid(), signal.SIGTERM + 1))",
        (
            "the worker of slot 0 (pid N) was ended by SIGSTKFLT while it started: "
            "see with --verbose what it writes"
        ),
    ),
    "exits": (
        "predictor = FunctionPredictor(lambda: os._exit(3))",
        (
            "the worker of slot 0 (pid N) exited by itself with status 3 while it started: "
            "see with --verbose what it writes"
        ),
    ),
    "does not predict": (
        """
        def load():
            calls = []
            def predict(x):
                calls.append(x)
                return {}["x"] if len(calls) > 1 else x
            return predict
        predictor = FunctionPredictor(load, signature=(np.float32, ()))
        """,
        "predict failed: KeyError: 'x'",
    ),
    "dies when it predicts": (
        """
        def load():
            calls = []
            def predict(x):
                calls.append(x)
                return os._exit(4) if len(calls) > 1 else x
            return predict
        predictor = FunctionPredictor(load, signature=(np.float32, ()))
        """,
        (
            "predict failed: worker N of slot 0 exited by itself with status 4 while it ran this "
            "request: see with --verbose what it writes"
        ),
    ),
    "raises what nobody knows here": (
        """
        def load():
            calls = []
            def predict(x):
                class Odd(Exception): ...
                calls.append(x)
                if len(calls) > 1:
                    raise Odd("Graph error:\\n\\nhistory\\nwrong\\n [[{{node x}}]]\\nend")
                return x
            return predict
        predictor = FunctionPredictor(load, signature=(np.float32, ()))
        """,
        (
            "predict failed: the model raised income.load.<locals>.predict.<locals>.Odd in slot 0, "
            "pid N: Graph error: wrong"
        ),
    ),
}


@pytest.mark.parametrize("what", list(WORKER_MISTAKES))
def test_a_predictor_that(folder: Path, what: str) -> None:
    text, line = WORKER_MISTAKES[what]
    imports = "import os, signal, threading\nimport numpy as np\n"
    write(
        folder,
        income=f"{imports}from predictpool import FunctionPredictor\n{textwrap.dedent(text)}",
    )
    assert mistake("income:predictor", 1) == line


def test_a_predictor_that_takes_too_long_to_load(folder: Path) -> None:
    write(
        folder,
        income="""
        import signal
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(signal.pause)
        """,
    )
    assert mistake("income:predictor", 1, start_timeout=5) == (
        "the worker of slot 0 (pid N) was not ready within start_timeout=5 s: "
        "give it longer with --start-timeout, or see with --verbose what it writes"
    )


def test_features_that_the_loaded_model_does_not_take(folder: Path) -> None:
    write(
        folder,
        income="""
        import numpy as np
        from predictpool import FunctionPredictor, Signature

        class Learning(FunctionPredictor):
            def load(self, device):
                super().load(device)
                self.signature = Signature.declared({"age": np.float32})

        predictor = Learning(lambda: lambda features: features)
        example = {"aeg": [1.0]}
        """,
    )
    assert mistake("income:predictor", 2, features="income:example") == (
        "--features do not fit the model: feature 'age' is missing: given [aeg], "
        "expected float32 rows of shape (); did you mean it by 'aeg'?"
    )


# --- the command -------------------------------------------------------------------


def test_json_is_all_there_is_on_stdout_whatever_module_and_worker_print(folder: Path) -> None:
    noise = (
        "print('from the module')\nimport os\n"
        "def load():\n    print('from the worker', flush=True)\n    os.write(2, b'err')\n"
        "    return lambda x: x\n"
        "from predictpool import FunctionPredictor\n"
        "predictor = FunctionPredictor(load, signature=(float, (2,)))\n"
    )
    write(folder, income=noise)
    ended = command(folder, "income:predictor", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    result = json.loads(ended.stdout)
    assert result["target"] == "income:predictor"
    assert result["features"] == [
        {
            "name": "",
            "dtype": "float64",
            "shape": [2],
            "required": True,
            "default": None,
            "missing": None,
            "allow_nan": False,
            "ragged": False,
        }
    ]
    assert result["outputs"] == [{"name": "", "dtype": "float64", "shape": [1, 2]}]
    loud = command(folder, "income:predictor", "--json", "--verbose")
    assert json.loads(loud.stdout)["target"] == "income:predictor"
    for text in ("from the module", "from the worker", "err"):
        assert text in loud.stderr


def test_people_get_tables(folder: Path) -> None:
    write(folder, income=INCOME)
    ended = command(folder, "income:predictor")
    assert (ended.returncode, ended.stderr) == (0, "")
    for words in ("income:predictor, FunctionPredictor", "for 1 row", "PSS", "threads: 1"):
        assert words in ended.stdout
    for row in (
        r"age .* float32 .* \(3,\) .* refused .* refused",
        r"job .* text .* \(\) .* 'none'",
    ):
        assert re.search(row, ended.stdout)
    assert re.search(r"ids .* int64 .* \(any,\)", ended.stdout)


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(
        _check.table(
            CheckResult(
                target="income:p",
                predictor="P",
                method="session",
                features=(Feature("a[red]", "float32", (None, 2), True, None),),
                outputs=(Output("b[bold]", "list", None),),
                row_wise=False,
                warning="mind the gap",
                start_seconds=7.5,
                load_seconds=1.25,
                predict_seconds=0.0012,
                rows=2,
                pss_bytes=200_000_000,
                uss_bytes=90_000_000,
                cores=(0, 1),
                threads=1,
                gpu="GPU-a",
            )
        )
    )
    text = console.export_text()
    for cell in ("a[red]", "(any, 2)", "b[bold]", "session", "mind the gap", "7.50 s", "1.25 s"):
        assert cell in text
    for cell in ("1.20 ms for 2 rows", "200 MB (PSS), of which 90 MB", "GPU GPU-a; cores: 0, 1"):
        assert cell in text


def test_a_mistake_is_one_line_on_stderr_and_its_traceback_for_those_who_ask(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor

        def load():
            raise ValueError("no such model")

        predictor = FunctionPredictor(load, preload=("no_such_module",))
        """,
    )
    ended = command(folder, "income:predictor")
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("predictpool: the worker of slot 0 ")
    assert line.endswith(": ValueError: no such model; --verbose shows the traceback")
    loud = command(folder, "income:predictor", "--verbose")
    assert loud.returncode == 1
    assert 'raise ValueError("no such model")' in loud.stderr
    assert "--verbose" not in loud.stderr


def test_a_command_that_is_wrong_is_one_line_and_exit_code_2(folder: Path) -> None:
    ended = command(folder, "income")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("predictpool: 'income' is not MODULE:PREDICTOR")


def test_a_predictor_that_was_not_asked_is_shown_with_a_line_and_exit_code_2(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor
        predictor = FunctionPredictor(lambda: lambda x: x)
        """,
    )
    ended = command(folder, "income:predictor", "--json")
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["outputs"] is None
    (line,) = ended.stderr.splitlines()
    assert line.startswith("predictpool: income:predictor was loaded, but not asked")


@needs.estimators
@pytest.mark.timeout(120)  # TensorFlow on a busy machine
def test_the_command_itself_does_not_import_tensorflow(folder: Path) -> None:
    write(
        folder,
        income="""
        from predictpool import FunctionPredictor

        def load():
            import sys
            assert "tensorflow" in sys.modules
            return lambda x: x

        predictor = FunctionPredictor(load, signature=(float, ()), preload=("tensorflow",))
        """,
    )
    code = """if True:
        import sys
        from predictpool._cli import main
        try:
            main()
        finally:
            print("tensorflow" in sys.modules, file=sys.stderr)
    """
    ended = command(folder, "income:predictor", code=code)
    assert (ended.returncode, ended.stderr) == (0, "False\n")


HANGING: dict[str, Callable[[str], str]] = {
    # A signal that comes just before a blocking call does not end that one.
    "while the module is imported": lambda say: f"{say}\nwhile True: time.sleep(0.01)",
    "while the predictor is loaded": lambda say: (
        f"""
def load():
    {say}
    signal.pause()
predictor = FunctionPredictor(load)
"""
    ),
}


@pytest.mark.parametrize("when", list(HANGING))
def test_an_interrupt_ends_it_quietly(folder: Path, when: str) -> None:
    os.mkfifo(folder / "journal")
    journal = os.open(folder / "journal", os.O_RDWR)
    say = f"pathlib.Path({str(folder / 'journal')!r}).write_text('here')"
    imports = "import pathlib, signal, time\nfrom predictpool import FunctionPredictor\n"
    write(folder, income=f"{imports}{HANGING[when](say)}")
    code = "from predictpool._cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, "check", "income:predictor"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        heard, _, _ = select.select([journal], [], [], 30)
        os.close(journal)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert heard
    assert process.returncode == 130
