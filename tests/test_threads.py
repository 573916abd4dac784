"""The threads that TensorFlow really starts, counted in workers on every form of device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from predictpool import FunctionPredictor, LocalLauncher, PredictorPool
from tests import needs
from tests.control_groups import control_group
from tests.pools import ONE_LOOP, POOL_TEST

pytestmark = [*POOL_TEST, needs.estimators]

CORES = sorted(os.sched_getaffinity(0))
ALL = f"cpu:{','.join(map(str, CORES))}"
GPUS = ("GPU-a", "GPU-b", "MIG-c")

several_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


def counting(folder: Path) -> FunctionPredictor[Any]:
    """A predictor whose workers write down what they found while they loaded."""

    def load() -> Any:
        import numpy as np
        import tensorflow as tf

        tasks = Path("/proc/self/task")
        before = len(list(tasks.iterdir()))
        matrix = np.ones((512, 512), np.float32)
        tf.linalg.matmul(matrix, matrix)
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            session.run(tf.linalg.matmul(matrix, matrix))
            started = len(list(tasks.iterdir())) - before
        found = {
            "afresh": Path("/proc/self/cmdline").read_bytes().split(b"\0")[3] == b"worker",
            "cores": sorted(os.sched_getaffinity(0)),
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
            "before": before,
            "started": started,
        }
        (folder / str(os.getpid())).write_text(json.dumps(found))
        return lambda x: x

    return FunctionPredictor(load, preload=("tensorflow",))


async def counted(
    folder: Path, devices: str | Sequence[str], *, fork: bool = True, workers: int | None = None
) -> list[dict[str, Any]]:
    """Return what the workers found, in the order of the slots, once it agrees with the plan."""
    pool = PredictorPool(
        counting(folder), devices=devices, workers=workers, launcher=LocalLauncher(fork=fork)
    )
    everything = []
    async with pool:
        await pool.wait_ready()
        for worker in pool.workers():
            found = json.loads((folder / str(worker.pid)).read_text())
            assert found["cores"] == list(worker.device.cores)
            assert found["gpu"] == worker.device.gpu
            # In three pools, of which this is the size of each, and one more: measured with
            # TensorFlow 2.15, for calls of both kinds.
            assert found["started"] == 1 + 3 * worker.device.threads
            everything.append(found)
    return everything


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have GPUs, as far as the application knows; TensorFlow finds no driver for them."""
    monkeypatch.setattr("predictpool._local_launcher.usable_gpus", lambda **_: GPUS)


@ONE_LOOP
@several_cores
@pytest.mark.usefixtures("gpus")
async def test_each_form_of_device_gives_tensorflow_its_cores_threads_and_gpu(
    tmp_path: Path,
) -> None:
    forms = ["cpu", f"cpu:{CORES[-1]}", ALL, "gpu:1", "gpu:GPU-a", "gpu:MIG-c"]
    found = await counted(tmp_path, forms)
    assert [one["cores"] for one in found[:3]] == [CORES[:1], CORES[-1:], CORES]
    assert [one["gpu"] for one in found] == ["", "", "", "GPU-b", "GPU-a", "MIG-c"]
    assert [one["afresh"] for one in found[:3]] == [False, False, True]
    assert found[0]["before"] == 1


@ONE_LOOP
@several_cores
@pytest.mark.usefixtures("gpus")
async def test_workers_that_are_started_afresh_have_them_too(tmp_path: Path) -> None:
    found = await counted(tmp_path, [f"cpu:{CORES[0]}", ALL, "gpu:GPU-b"], fork=False)
    assert all(one["afresh"] for one in found)
    assert [one["gpu"] for one in found] == ["", "", "GPU-b"]


@ONE_LOOP
@pytest.mark.usefixtures("gpus")
async def test_without_a_word_there_is_a_worker_for_each_gpu(tmp_path: Path) -> None:
    assert [one["gpu"] for one in await counted(tmp_path, "auto")] == list(GPUS)


APPLICATION = """
import os, sys
from pathlib import Path

Path(sys.argv[1]).write_text(str(os.getpid()))

import anyio
from tests.test_threads import counted

found = anyio.run(lambda: counted(Path(sys.argv[2]), sys.argv[3]))
print(len(found), found[0]["cores"], found[0]["started"])
"""


@several_cores
def test_under_a_real_quota_of_one_core_there_is_one_worker_with_one_thread_and_no_pin(
    tmp_path: Path,
) -> None:
    period = "100000"
    v1 = {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": period}
    with control_group("cpu", v1, {"cpu.max": f"{period} {period}"}) as processes:
        for devices in ("cpu", ALL):
            told = subprocess.run(
                [sys.executable, "-c", APPLICATION, str(processes), str(tmp_path), devices],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            assert told == f"1 {CORES} 4\n"
