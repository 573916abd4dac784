"""How workers start: one clear error or none, from wherever a pool is opened."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predictpool import FunctionPredictor, LocalLauncher, PredictorPool, WorkerStartError
from predictpool._devices import Device
from predictpool._local_launcher import _Template
from tests import needs
from tests.conftest import Family
from tests.pools import ONE_LOOP, POOL_TEST, calling, doubling
from tests.stage import Stage

pytestmark = POOL_TEST


# --- a start that fails ------------------------------------------------------------


def raising() -> None:
    raise ValueError("no such checkpoint")


def importing() -> None:
    import no_such_module  # type: ignore[import-not-found] # noqa: F401


def killing_itself() -> None:
    os.kill(os.getpid(), 9)


def exiting() -> None:
    sys.exit(0)


def exiting_hard() -> None:
    os._exit(3)


def returning_nothing() -> None:
    pass


FAILURES = {
    "raises": (raising, "ValueError: no such checkpoint", True),
    "imports what is missing": (importing, "No module named 'no_such_module'", True),
    "is killed": (killing_itself, "ended by SIGKILL", False),
    "exits with 0": (exiting, "exited by itself with status 0 while it started", False),
    "exits with 3": (exiting_hard, "exited by itself with status 3 while it started", False),
    "returns no function": (returning_nothing, "load() returned None", True),
}


@pytest.mark.parametrize(("fail", "text", "traceback"), list(FAILURES.values()), ids=list(FAILURES))
async def test_a_first_worker_that_cannot_start_is_one_clear_error(  # noqa: PLR0917 - fixtures
    stage: Stage,
    fail: Callable[[], None],
    text: str,
    traceback: bool,
    nothing_left: Family,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> Any:
        stage.say("one more")
        return fail()

    pool = PredictorPool(FunctionPredictor(load), workers=3)
    with pytest.raises(WorkerStartError) as caught:
        await pool.open()
    assert text in str(caught.value)
    assert caught.value.slot == 0
    assert caught.value.pid is not None
    if traceback:
        assert "Traceback" in caught.value.traceback
        assert ", in load" in caught.value.traceback
        assert caught.value.traceback in str(caught.value)
    assert stage.heard() == ["one more"]  # and not one for each worker
    assert nothing_left.gone_within(1)
    assert not caplog.records  # raised, not logged too
    assert repr(pool) == "<PredictorPool closed>"


@ONE_LOOP
async def test_a_worker_that_segfaults_in_load_says_where() -> None:
    def load() -> Any:
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(WorkerStartError, match="SIGSEGV") as caught:
        await PredictorPool(FunctionPredictor(load), workers=1).open()
    assert "Segmentation fault" in caught.value.traceback
    assert "in load" in caught.value.traceback


async def test_how_a_worker_ended_is_known_where_it_ended_before_its_start_was_noticed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # There is no such core, so the worker ends at once.
    monkeypatch.setattr("predictpool._local_launcher.plan", lambda *_: [Device(cores=(100_000,))])
    on_message = _Template._on_message

    def let_the_next_message_come(template: _Template, message: Any, *others: Any) -> None:
        on_message(template, message, *others)
        if "started" in message:
            assert select.select([template._control], [], [], 15)[0]

    monkeypatch.setattr(_Template, "_on_message", let_the_next_message_come)
    with pytest.raises(WorkerStartError, match="exited by itself with status 1 while it started"):
        await PredictorPool(doubling(), workers=1).open()
    assert "Invalid argument" in capfd.readouterr().err


@ONE_LOOP
async def test_a_predictor_or_warmup_that_does_not_pickle_is_a_type_error_before_any_process(
    nothing_left: Family,
) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"the predictor cannot be sent to a worker.*lock"):
        await PredictorPool(calling(lambda x: (lock, x)), workers=1).open()
    with pytest.raises(TypeError, match="warmup cannot be sent to a worker"):
        await PredictorPool(doubling(), workers=1, warmup=lock).open()
    assert nothing_left.gone_within(1)


@ONE_LOOP
async def test_a_predictor_that_does_not_unpickle_is_a_start_error_with_the_traceback() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    stubborn = Stubborn()
    with pytest.raises(WorkerStartError, match="invalid literal for int") as caught:
        await PredictorPool(calling(lambda x: (stubborn, x)), workers=1).open()
    assert "Traceback" in caught.value.traceback


@ONE_LOOP
async def test_a_warm_up_that_fails_is_a_start_error_that_names_warmup() -> None:
    def predict(x: Any) -> Any:
        return x["missing"]

    with pytest.raises(WorkerStartError, match="give the pool warmup=") as caught:
        await PredictorPool(calling(predict), workers=1, warmup={"a": [1.0]}).open()
    assert "KeyError" in caught.value.traceback


async def test_a_start_that_takes_too_long_is_ended(stage: Stage, nothing_left: Family) -> None:
    def load() -> Any:
        stage.hold()

    pool = PredictorPool(FunctionPredictor(load), workers=1, start_timeout=0.3)
    with pytest.raises(WorkerStartError, match=r"not ready within start_timeout=0\.3 s"):
        await pool.open()
    assert nothing_left.gone_within(1)


async def test_a_template_that_dies_at_once_is_a_start_error(
    monkeypatch: pytest.MonkeyPatch, nothing_left: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(WorkerStartError, match="template process ended before it was ready"):
        await PredictorPool(doubling(), workers=1).open()
    assert nothing_left.gone_within(1)
    assert "Python" in capfd.readouterr().err


@ONE_LOOP
async def test_a_python_that_is_missing_is_an_error_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(WorkerStartError, match=r"could not be started.*nonexistent"):
        await PredictorPool(doubling(), workers=1).open()


# --- forked, or started afresh -----------------------------------------------------


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "afresh"])
async def test_workers_work_the_same_forked_and_started_afresh(
    fork: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    async with PredictorPool(doubling(), workers=2, launcher=LocalLauncher(fork=fork)) as pool:
        await pool.wait_ready()
        assert (await pool.predict([1.0, 2.0])).tolist() == [2.0, 4.0]
        with pytest.raises(TypeError, match=r"could not convert|ufunc|unsupported|can't multiply"):
            await pool.predict(np_objects())
    said = [record.getMessage() for record in caplog.records]
    assert said.count("a worker is started afresh, not forked: the launcher says so") == (not fork)


def np_objects() -> Any:
    import numpy as np

    return np.array([{}, {}], dtype=object)


@ONE_LOOP
async def test_forked_workers_are_copies_of_the_template_and_others_are_not() -> None:
    def command(_: Any) -> Any:
        return [Path("/proc/self/cmdline").read_text(encoding="utf-8")]

    for fork, role in ((True, "worker"), (False, "worker")):
        async with PredictorPool(
            calling(command), workers=1, launcher=LocalLauncher(fork=fork)
        ) as pool:
            assert (role in (await pool.predict([0.0]))[0].split("\0")) == (not fork)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that workers can import, and return its name."""

    def write(source: str) -> str:
        name = f"module_of_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


@ONE_LOOP
@pytest.mark.parametrize("fork", [True, False], ids=["forked", "afresh"])
async def test_what_preload_names_is_imported_once_for_all_forked_workers(
    fork: bool, module: Callable[[str], str], tmp_path: Path
) -> None:
    name = module(
        f"""
        import os
        with open({str(tmp_path / "imports")!r}, "a") as note:
            print(os.getpid(), file=note)
        """
    )

    def load() -> Callable[[Any], Any]:
        __import__(name)
        return lambda x: x

    pool = PredictorPool(
        FunctionPredictor(load, preload=(name,)), workers=3, launcher=LocalLauncher(fork=fork)
    )
    async with pool:
        await pool.wait_ready()
    imports = (tmp_path / "imports").read_text(encoding="utf-8").split()
    assert len(imports) == (1 if fork else 3)  # in the template; or in each worker, and only there


@ONE_LOOP
async def test_a_template_with_threads_starts_workers_afresh_and_says_so(
    module: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    name = module(
        """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        """
    )
    async with PredictorPool(doubling(preload=(name,)), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
    assert "a worker is started afresh, not forked: the template has 2 threads" in caplog.text


@ONE_LOOP
@needs.pyarrow
async def test_pyarrow_which_pandas_imports_starts_no_thread_in_the_template(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    async with PredictorPool(doubling(preload=("pandas",)), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
    assert "afresh" not in caplog.text


@ONE_LOOP
async def test_a_preload_that_cannot_be_imported_is_logged_and_left_to_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with PredictorPool(doubling(preload=("no_such_module",)), workers=1) as pool:
        assert (await pool.predict([1.0])).tolist() == [2.0]
    assert "could not import everything" in caplog.text
    assert "no_such_module" in caplog.text


@ONE_LOOP
async def test_forked_workers_do_not_draw_the_same_random_numbers() -> None:
    def load() -> Callable[[Any], Any]:
        import random

        import numpy as np

        drawn = [random.random(), np.random.random()]  # noqa: NPY002 - as old models do it
        return lambda _: [os.getpid(), *drawn]

    async with PredictorPool(
        FunctionPredictor(load, preload=("random", "numpy")), workers=2
    ) as pool:
        await pool.wait_ready()
        first = await pool.predict([0.0])
        os.kill(first[0], 9)
        while (second := await pool.predict([0.0]))[0] == first[0]:
            pass
        assert first[1] != second[1]
        assert first[2] != second[2]


# --- from wherever a pool is opened ------------------------------------------------

SCRIPT = """
import asyncio
import sys
from predictpool import FunctionPredictor, PredictorPool

offset = 40.0

class Model:
    def __call__(self, x):
        return x + offset

def load():
    return Model()

async def main():
    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        print("answer", (await pool.predict([2.0])).tolist())
    factor = 3
    async with PredictorPool(FunctionPredictor(lambda: lambda x: x * factor), workers=1) as pool:
        print("answer", (await pool.predict([2.0])).tolist())

"""
RUN = "asyncio.run(main())\n"
EXPECTED = ["answer [42.0]", "answer [6.0]"]


def answers(output: str) -> list[str]:
    return [line[line.index("answer") :] for line in output.splitlines() if "answer" in line]


def run_python(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def test_a_module_that_opens_a_pool_whenever_it_is_imported_is_told_of_the_main_guard(
    tmp_path: Path,
) -> None:
    (tmp_path / "models.py").write_text(SCRIPT + RUN, encoding="utf-8")
    run = run_python("-c", "import models", cwd=tmp_path)
    assert run.returncode == 1
    assert "WorkerStartError" in run.stderr
    assert 'under `if __name__ == "__main__":`' in run.stderr
    assert answers(run.stdout) == []


@pytest.mark.parametrize("harmless", ["GRP = 1", "raise ImportError('not this one')"])
def test_a_script_needs_no_main_guard_and_may_shadow_the_standard_library(
    tmp_path: Path, harmless: str
) -> None:
    (tmp_path / "grp.py").write_text(harmless, encoding="utf-8")
    # These would break the template, had it the script's folder on its path from the start.
    for name in ("array", "fcntl", "select", "gc", "traceback", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
    (tmp_path / "script.py").write_text(
        "import sys\nfolder = sys.path.pop(0)\n"
        "import array, fcntl, select, gc, traceback, signal\n"
        f"sys.path.insert(0, folder)\n{SCRIPT}{RUN}",
        encoding="utf-8",
    )
    done = run_python("script.py", cwd=tmp_path)
    assert answers(done.stdout) == EXPECTED, done.stderr
    assert not done.stderr
    assert done.returncode == 0


def test_python_c_works(tmp_path: Path) -> None:
    done = run_python("-c", SCRIPT + RUN, cwd=tmp_path)
    assert answers(done.stdout) == EXPECTED, done.stderr
    assert not done.stderr


def test_the_interactive_interpreter_works(tmp_path: Path) -> None:
    typed = SCRIPT.replace("\n\n", "\n").replace("\ndef", "\n\ndef").replace("\nasync", "\n\nasync")
    typed = typed.replace("\nclass", "\n\nclass") + "\n" + RUN
    done = run_python("-i", "-q", cwd=tmp_path, input=typed)
    assert answers(done.stdout) == EXPECTED, done.stderr
    assert "Error" not in done.stderr


def test_a_main_that_is_read_from_stdin_works(tmp_path: Path) -> None:
    done = run_python("-", cwd=tmp_path, input=SCRIPT + RUN)
    assert answers(done.stdout) == EXPECTED, done.stderr
