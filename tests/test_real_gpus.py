"""Workers on a GPU, where there is one: skipped elsewhere, and nothing depends on them."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictpool import FunctionPredictor, PredictorPool
from predictpool._gpus import usable_gpus
from tests.pools import ONE_LOOP, POOL_TEST, pids_of, until

GPUS = usable_gpus(required=False)


def needs(library: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"needs {library}")


needs_torch, needs_jax = needs("torch"), needs("jax")

pytestmark = [
    *POOL_TEST,
    ONE_LOOP,
    pytest.mark.timeout(120),  # a library that comes up on a GPU takes its time
    pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU and nvidia-ml-py"),
]


def in_torch(**options: Any) -> FunctionPredictor[Any]:
    """A predictor that doubles its rows where it is, and tells where that is."""

    def load() -> Any:
        import torch

        gpu = torch.cuda.is_available()
        where = torch.device("cuda" if gpu else "cpu")
        found = {
            "gpus": torch.cuda.device_count(),
            "uuid": f"GPU-{torch.cuda.get_device_properties(0).uuid}" if gpu else "",
            "forked": Path("/proc/self/cmdline").read_bytes().split(b"\0")[3] != b"worker",
            "threads": torch.get_num_threads(),
            "pid": os.getpid(),
        }
        return lambda x: (found, (torch.tensor(x, device=where) * 2).cpu().numpy())

    return FunctionPredictor(load, **options)


def in_jax(**options: Any) -> FunctionPredictor[Any]:
    def load() -> Any:
        import jax

        device = jax.devices()[0]
        held = jax.device_put(np.ones(1000, np.float32))
        found = {"platform": device.platform, "count": jax.device_count(), "pid": os.getpid()}
        return lambda x: (found, np.asarray(jax.numpy.asarray(x) * 2 * held[0]))

    return FunctionPredictor(load, **options)


async def ask(pool: PredictorPool[Any]) -> Any:
    found, doubled = await pool.predict([1.5, 2.0])
    assert list(doubled) == [3.0, 4.0]
    return found


def gpu_bytes() -> int:
    """How much memory of the first GPU is taken, whoever has it."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def on_one_core() -> Iterator[None]:
    """Have workers with one thread, which are forked."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@needs_torch
@pytest.mark.parametrize("devices", ["auto", "gpu:0", f"gpu:{GPUS[0]}" if GPUS else ""])
async def test_a_worker_sees_its_gpu_alone(devices: str) -> None:
    async with PredictorPool(in_torch(), workers=1, devices=devices) as pool:
        found = await ask(pool)
        assert (found["gpus"], found["uuid"]) == (1, GPUS[0])
        assert [device.gpu for device in pool.plan()] == [GPUS[0]]


@needs_torch
@pytest.mark.parametrize("preload", [(), ("torch",)])
async def test_a_cpu_worker_sees_none(preload: tuple[str, ...]) -> None:
    before = gpu_bytes()
    async with PredictorPool(in_torch(preload=preload), workers=1, devices="cpu") as pool:
        found = await ask(pool)
        assert (found["gpus"], found["uuid"], found["threads"]) == (0, "", 1)
        assert gpu_bytes() == before


@needs_torch
@pytest.mark.parametrize("preload", [(), ("torch",)])
async def test_a_forked_worker_sees_its_gpu(
    preload: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    with on_one_core():
        async with PredictorPool(in_torch(preload=preload), devices="gpu:0", workers=2) as pool:
            await pool.wait_ready()
            found = await ask(pool)
            assert (found["gpus"], found["uuid"], found["threads"]) == (1, GPUS[0], 1)
            assert found["forked"] == ("afresh" not in caplog.text), caplog.text
            assert found["forked"]


@needs_torch
async def test_a_preloaded_module_that_opens_the_gpu_keeps_workers_from_being_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "predictpool")
    (tmp_path / "opening.py").write_text(
        "import ctypes\nassert ctypes.CDLL('libcuda.so.1').cuInit(0) == 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with on_one_core():
        async with PredictorPool(in_torch(preload=("opening",)), devices="gpu:0") as pool:
            found = await ask(pool)
            assert (found["gpus"], found["forked"]) == (1, False)
    assert "started afresh, not forked" in caplog.text


@needs_torch
async def test_a_mixed_pool_has_each_worker_in_its_place() -> None:
    async with PredictorPool(in_torch(), devices=["cpu", "gpu:0"]) as pool:
        await pool.wait_ready()
        seen: dict[int, int] = {}
        while len(seen) < 2:
            async for found, _ in pool.map([[1.0]] * 4):
                seen[found["pid"]] = found["gpus"]
        assert [seen[pid] for pid in pids_of(pool)] == [0, 1]


@needs_torch
async def test_a_killed_worker_is_replaced_on_its_gpu() -> None:
    before = gpu_bytes()
    async with PredictorPool(in_torch(), devices="gpu:0", workers=2) as pool:
        await pool.wait_ready()
        os.kill(pids_of(pool)[0], signal.SIGKILL)
        await until(lambda: pool.statistics().restarts == 1)
        await pool.wait_ready()
        assert {device.gpu for device in pool.plan()} == {GPUS[0]}
        for _ in range(4):
            assert (await ask(pool))["gpus"] == 1
        assert gpu_bytes() > before
    assert gpu_bytes() - before < 64 << 20  # all is given back


@needs_jax
@pytest.mark.parametrize("preload", [(), ("jax",)])
@pytest.mark.parametrize(("devices", "platform"), [("cpu", "cpu"), ("gpu:0", "gpu")])
async def test_jax_is_where_the_worker_is(
    devices: str, platform: str, preload: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    async with PredictorPool(in_jax(preload=preload), workers=1, devices=devices) as pool:
        found = await ask(pool)
        assert (found["platform"], found["count"]) == (platform, 1)
    assert "Traceback" not in capfd.readouterr().err


@needs_jax
async def test_workers_share_the_memory_of_a_gpu_unless_the_user_wants_it_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = gpu_bytes()
    async with PredictorPool(in_jax(), devices="gpu:0", workers=2) as pool:
        await pool.wait_ready()
        await ask(pool)
        assert gpu_bytes() - before < 4 << 30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    async with PredictorPool(in_jax(), devices="gpu:0", workers=1) as pool:
        await ask(pool)
        assert gpu_bytes() - before > 16 << 30


@pytest.mark.parametrize(("setting", "expected"), [("0", GPUS[:1]), ("", ()), ("7,0", ())])
async def test_the_setting_of_the_application_is_respected(
    setting: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    pool = PredictorPool(in_torch(), workers=1)
    assert tuple(device.gpu for device in pool.plan() if device.gpu) == expected
    if not expected:
        with pytest.raises(ValueError, match="may use no GPU"):
            PredictorPool(in_torch(), devices="gpu:0").plan()
