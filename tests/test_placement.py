"""Where workers are, asked in the workers themselves."""

from __future__ import annotations

import ctypes.util
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from predictpool import (
    Device,
    FunctionPredictor,
    LocalLauncher,
    PoolClosed,
    PredictorPool,
    _gpus,
    _template,
)
from predictpool._local_launcher import worker_environment
from predictpool.testing import InlinePool
from tests.conftest import Family
from tests.pools import ONE_LOOP, POOL_TEST, both_pools, doubling

pytestmark = POOL_TEST

CORES = sorted(os.sched_getaffinity(0))
ALL = f"cpu:{','.join(map(str, CORES))}"
GPUS = ("GPU-a", "GPU-b")

with_two_gpus = pytest.mark.usefixtures("two_gpus")
several_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")

WATCHED = (
    "CUDA_VISIBLE_DEVICES",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "JAX_PLATFORMS",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neither a setting nor a driver, whatever this machine has."""
    monkeypatch.setattr("predictpool._gpus._DRIVER", ())
    for name in WATCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have GPUs, as far as the application knows."""
    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", lambda **_: GPUS)


def telling(preload: tuple[str, ...] = ()) -> FunctionPredictor[Any]:
    """A predictor that tells where it was loaded, which is when libraries look."""

    def load() -> Any:
        began_afresh = Path("/proc/self/cmdline").read_bytes().split(b"\0")[3] == b"worker"
        found = {
            "cores": sorted(os.sched_getaffinity(0)),
            "afresh": began_afresh,
            **{name: os.environ.get(name) for name in WATCHED},
        }
        return lambda _: found

    return FunctionPredictor(load, preload=preload)


async def told(
    devices: str | Sequence[str], *, preload: tuple[str, ...] = (), **options: Any
) -> list[dict[str, Any]]:
    """Return what each worker of a pool tells, in the order of its slots."""
    async with PredictorPool(telling(preload), devices=devices, **options) as pool:
        await pool.wait_ready()
        plan = pool.plan()
        assert plan == tuple(worker.device for worker in pool.workers())
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        with anyio.fail_after(15):
            while len(found) < len(set(plan)):  # whoever is free answers
                async for one in pool.map([[1.0]] * len(plan)):
                    found[tuple(one["cores"]), one["CUDA_VISIBLE_DEVICES"]] = one
        return [found[device.cores, device.gpu] for device in plan]


@pytest.mark.parametrize("fork", [True, False])
async def test_a_worker_on_one_core_is_pinned_to_it_and_has_one_thread_of_each_library(
    fork: bool,
) -> None:
    (one,) = await told(f"cpu:{CORES[-1]}", launcher=LocalLauncher(fork=fork))
    assert one == {
        "cores": CORES[-1:],
        "afresh": not fork,
        "CUDA_VISIBLE_DEVICES": "",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": None,
    }


@several_cores
async def test_a_worker_on_several_cores_is_started_afresh_with_as_many_threads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    (one,) = await told(ALL)
    threads = str(len(CORES))
    assert one["cores"] == CORES
    assert one["afresh"]
    assert {one[name] for name in WATCHED if name.endswith("_THREADS")} == {threads}
    assert f"started afresh, not forked: the device has {threads} threads" in caplog.text


@several_cores
@with_two_gpus
async def test_each_worker_of_a_list_is_where_the_list_says() -> None:
    first, second, gpu, other = await told(
        [f"cpu:{CORES[1]}", f"cpu:{CORES[0]}", "gpu:1", "gpu:GPU-a"]
    )
    assert [first["cores"], second["cores"]] == [CORES[1:2], CORES[:1]]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in (first, second, gpu, other)] == [
        "",
        "",
        "GPU-b",
        "GPU-a",
    ]


@with_two_gpus
async def test_workers_of_gpus_see_one_each_and_cpu_workers_none_whatever_the_application_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = [one["CUDA_VISIBLE_DEVICES"] for one in await told("auto")]
    assert seen == list(GPUS)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in await told("cpu", workers=1)] == [""]


@ONE_LOOP
async def test_numbers_of_threads_of_the_users_own_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    (one,) = await told("cpu", workers=1)
    assert (one["OMP_NUM_THREADS"], one["TF_NUM_INTRAOP_THREADS"]) == ("3", "3")
    assert one["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert one["OPENBLAS_NUM_THREADS"] == "1"  # or it could not be forked


@ONE_LOOP
async def test_on_a_machine_with_gpus_jax_does_not_look_for_them_in_cpu_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_gpus, "_DRIVER", ("/dev/null",))
    told_by_template = tmp_path / "told"
    (tmp_path / "telling.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(told_by_template)!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'] + "
        "os.environ['JAX_PLATFORMS'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (one,) = await told("cpu", workers=1, preload=("telling",))
    assert (one["CUDA_VISIBLE_DEVICES"], one["JAX_PLATFORMS"]) == ("", "cpu")
    assert told_by_template.read_text() == "cpu"  # which reads it when it is imported
    monkeypatch.setenv("JAX_PLATFORMS", "other")
    (one,) = await told("cpu", workers=1)
    assert one["JAX_PLATFORMS"] == "other"


def test_a_worker_of_several_threads_has_them_in_every_library() -> None:
    environment = worker_environment(Device("gpu", (0, 1), 2, "GPU-a"), {})
    assert environment.pop("CUDA_VISIBLE_DEVICES") == "GPU-a"
    assert set(environment.values()) == {"2"}
    assert set(environment) == {name for name in WATCHED if name.endswith("_THREADS")}


# --- the plan ----------------------------------------------------------------------


@with_two_gpus
async def test_a_plan_is_made_without_a_process(nothing_left: Family) -> None:
    pool = PredictorPool(doubling(), devices=["gpu:GPU-b", "cpu"])
    gpu, cpu = pool.plan()
    assert (gpu.kind, gpu.gpu, cpu.kind, cpu.gpu) == ("gpu", "GPU-b", "cpu", "")
    assert pool.statistics().workers == 2
    assert nothing_left.pids() == []
    async with pool:
        assert pool.plan() == (gpu, cpu)


async def test_the_plan_of_an_open_pool_is_where_its_workers_are() -> None:
    async with PredictorPool(doubling(), workers=1, devices=f"cpu:{CORES[0]}") as pool:
        await pool.resize(2)
        assert pool.plan() == (Device(cores=(CORES[0],)),) * 2
        assert pool.plan() == tuple(worker.device for worker in pool.workers())


@with_two_gpus
@pytest.mark.parametrize(
    ("devices", "message"),
    [("gpu:2", "these alone: gpu:0 is GPU-a"), ("cpu:9999", "'cpu:9999', but this process")],
)
async def test_an_impossible_plan_is_an_error_before_the_first_process(
    nothing_left: Family, devices: str, message: str, monkeypatch: Any
) -> None:
    # Not even a launcher is bound.
    monkeypatch.setattr(LocalLauncher, "bind", None)
    pool = PredictorPool(doubling(), devices=devices)
    with pytest.raises(ValueError, match=message):
        pool.plan()
    with pytest.raises(ValueError, match=message):
        await pool.open()
    assert nothing_left.pids() == []


async def test_a_pool_is_not_made_larger_than_its_list() -> None:
    async with PredictorPool(doubling(), devices=["cpu", "cpu"]) as pool:
        await pool.resize(1)
        with pytest.raises(ValueError, match=r"devices lists 2, .* none for 3 workers"):
            await pool.resize(3)
        await pool.resize(2)
        assert pool.statistics().ready == 2


async def test_devices_that_are_none_are_refused_when_the_pool_is_made() -> None:
    with pytest.raises(ValueError, match="devices has 'tpu:0', expected \"auto\""):
        PredictorPool(doubling(), devices="tpu:0")


async def test_a_gpu_without_the_library_that_lists_them_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_gpus, "_DRIVER", ("/dev/null",))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "predictpool\[gpu\]"'):
        await PredictorPool(doubling(), devices="gpu:0").open()
    async with PredictorPool(doubling(), workers=1) as pool:  # "auto" says it in the log
        assert [device.kind for device in pool.plan()] == ["cpu"]


async def test_a_pool_that_is_closed_while_it_looks_for_gpus_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, nothing_left: Family
) -> None:
    pool = PredictorPool(doubling())

    def find(**_: Any) -> tuple[str, ...]:
        anyio.from_thread.run(pool.aclose)
        return GPUS

    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", find)
    with pytest.raises(PoolClosed, match="closed while it was opening"):
        await pool.open()
    assert nothing_left.pids() == []


async def test_an_open_that_is_cancelled_does_not_wait_for_the_driver(
    monkeypatch: pytest.MonkeyPatch, nothing_left: Family
) -> None:
    answers, asked, done = threading.Event(), anyio.Event(), threading.Event()
    waited: list[bool] = []

    def find(**_: Any) -> tuple[str, ...]:
        anyio.from_thread.run_sync(asked.set)
        waited.append(answers.wait(10))
        done.set()
        return ()

    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", find)
    pool = PredictorPool(doubling())
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        await asked.wait()
        group.cancel_scope.cancel()
    answers.set()
    await anyio.to_thread.run_sync(done.wait)
    assert waited == [True]
    assert nothing_left.pids() == []


async def test_a_pool_that_is_opened_twice_while_it_looks_for_gpus_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = PredictorPool(doubling(), workers=1)

    def find(**_: Any) -> tuple[str, ...]:
        both.wait()
        return ()

    both = threading.Barrier(2)
    errors = []

    async def open_it() -> None:
        try:
            await pool.open()
        except RuntimeError as error:
            errors.append(str(error))

    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", find)
    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
        group.start_soon(open_it)
    assert [error.partition(";")[0] for error in errors] == ["this pool is opening"]
    await pool.aclose()


@several_cores
async def test_what_the_thread_that_looked_for_gpus_may_use_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", lambda **_: ())
    await anyio.to_thread.run_sync(os.getpid)  # a thread that may use all cores, and stays
    os.sched_setaffinity(0, CORES[-1:])
    try:
        async with PredictorPool(doubling()) as pool:
            assert [device.cores for device in pool.plan()] == [(CORES[-1],)]
    finally:
        os.sched_setaffinity(0, CORES)


@with_two_gpus
async def test_what_the_application_hides_after_a_plan_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "predictpool._local_launcher.usable_gpus",
        lambda **_: GPUS[1:] if "CUDA_VISIBLE_DEVICES" in os.environ else GPUS,
    )
    pool = PredictorPool(doubling(), workers=1)
    assert [device.gpu for device in pool.plan()] == ["GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    async with pool:
        assert [device.gpu for device in pool.plan()] == ["GPU-b"]


async def test_gpus_are_looked_for_once_and_not_where_only_cores_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def find(**_: Any) -> tuple[str, ...]:
        asked.append(threading.get_ident())
        return ()

    monkeypatch.setattr("predictpool._local_launcher.has_driver", lambda: True)
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", find)
    async with PredictorPool(doubling(), devices="cpu", workers=1) as pool:
        await pool.resize(2)
    assert asked == []
    async with PredictorPool(doubling(), workers=1) as pool:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # too late
        await pool.resize(2)
    assert len(asked) == 1
    assert asked != [threading.get_ident()]


async def test_without_a_driver_no_thread_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyio.to_thread.run_sync", None)
    async with PredictorPool(doubling(), workers=1):
        pass


@several_cores
async def test_a_pool_is_made_smaller_whatever_the_application_may_use_by_then() -> None:
    devices = [f"cpu:{CORES[0]}", f"cpu:{CORES[1]}"]
    async with PredictorPool(doubling(), devices=devices) as pool:
        os.sched_setaffinity(0, CORES[:1])
        try:
            await pool.resize(1)
        finally:
            os.sched_setaffinity(0, CORES)
        assert pool.statistics().workers == 1


@several_cores
async def test_a_worker_that_is_started_later_has_the_environment_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with PredictorPool(telling(), devices=ALL) as pool:
        before = await pool.predict([1.0])
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
            monkeypatch.setenv(name, "7")
        await pool.reload()
        assert await pool.predict([1.0]) == before


async def test_a_forked_worker_has_one_thread_of_openmp() -> None:
    name = ctypes.util.find_library("gomp")
    if name is None:
        pytest.skip("needs GNU's OpenMP")

    def load() -> Any:
        library = ctypes.CDLL(name)
        return lambda _: {"threads": library.omp_get_max_threads(), "cores": os.cpu_count()}

    predictor = FunctionPredictor[Any](load, preload=("tests.openmp",))
    async with PredictorPool(predictor, workers=1) as pool:
        assert (await pool.predict([1.0]))["threads"] == 1


@both_pools
async def test_the_kind_of_a_device_is_told_to_the_predictor() -> None:
    class Telling:
        preload: tuple[str, ...] = ()
        row_wise = True
        signature = None

        def load(self, device: Device) -> None:
            self.kind = device.kind

        def predict(self, features: Any) -> Any:
            return [self.kind for _ in features]

        def close(self) -> None: ...

    devices = ["cpu", f"cpu:{CORES[0]}"]
    async with PredictorPool(Telling(), devices=devices) as pool:
        assert len(pool.plan()) == 2
        assert await pool.predict([1.0]) == ["cpu"]
        await pool.resize(1)
        assert len(pool.plan()) == 1


async def test_an_inline_pool_has_gpus_by_name() -> None:
    async with InlinePool(doubling(), devices=["cpu", "gpu:7"]) as pool:
        assert [device.kind for device in pool.plan()] == ["cpu", "gpu"]
        await pool.resize(1)
        assert [device.kind for device in pool.plan()] == ["cpu"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "predictpool", "devices", *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )


def test_the_command_line_says_the_plan() -> None:
    pytest.importorskip("typer", reason="needs typer")
    core = CORES[-1]
    ended = command(f"cpu:{core}", "--workers", "2")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"slot 0: cpu:{core} (1 thread)\nslot 1: cpu:{core} (1 thread)\n"
    found = json.loads(command("cpu", f"cpu:{core}", "--json").stdout)["devices"]
    assert found[1] == {"kind": "cpu", "cores": [core], "threads": 1, "gpu": ""}
    assert len(found) == 2
    assert command().stdout.splitlines()[0].startswith("slot 0: cpu:")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gpu:0"], "devices has 'gpu:0', but this process may use no GPU"),
        (["tpu"], "devices has 'tpu', expected \"auto\""),
        (["cpu", "cpu", "--workers", "3"], "devices lists 2, one for each worker, and workers is"),
        (["cpu", "cpu", "--workers", "1"], "devices lists 2, one for each worker, and workers is"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line_of_the_command(arguments: list[str], line: str) -> None:
    pytest.importorskip("typer", reason="needs typer")
    ended = command(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"predictpool: {line}")
    assert ended.stderr.count("\n") == 1


# --- forks -------------------------------------------------------------------------


def test_a_template_that_has_opened_a_gpu_does_not_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").symlink_to("/dev/null")
    (tmp_path / "1").touch()  # as one that is closed meanwhile
    assert not _template._holds_gpu(str(tmp_path))
    assert not _template._holds_gpu(str(tmp_path / "nowhere"))
    for number, device in enumerate(("/dev/nvidiactl", "/dev/dxg")):
        (tmp_path / str(number + 2)).symlink_to(device)
        assert _template._holds_gpu(str(tmp_path))
        (tmp_path / str(number + 2)).unlink()
    monkeypatch.setattr(_template, "_count_threads", lambda: 1)
    monkeypatch.setattr(_template, "_holds_gpu", lambda: True)
    assert "has opened a GPU" in _template._why_not_to_fork()


@several_cores
async def test_what_no_worker_is_forked_for_is_not_imported_by_the_template(tmp_path: Path) -> None:
    told = tmp_path / "imported_here"
    (tmp_path / "telling.py").write_text(
        f"import pathlib, sys\npathlib.Path({str(told)!r}).open('a').write(sys.argv[1] + '\\n')\n"
    )
    predictor = doubling(preload=("telling",))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        async with PredictorPool(predictor, devices=ALL):
            assert not told.exists()
        async with PredictorPool(predictor, devices=[ALL, "cpu"]):
            assert told.read_text().count("\n") == 1  # one of them is forked
