"""`RayLauncher`: the tests of the pool on actors, and what it does to programs and clusters.

All that uses Ray is in processes of its own: it starts threads and children in whatever imports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import needs

ROOT = Path(__file__).parent.parent
pytestmark = needs.ray

# Pools are a module's own in these programs, so predictors travel whole.
START = """
import asyncio
import os
import signal
import subprocess
import sys

import anyio
import numpy as np

from predictpool import FunctionPredictor, PoolClosed, PredictorPool, RayLauncher
from tests.on_ray import actors, gone_within


def doubling():
    return FunctionPredictor(lambda: lambda x: x * 2, row_wise=True)


def on(launcher=None, **options):
    options.setdefault("workers", 1)
    return PredictorPool(doubling(), launcher=launcher or RayLauncher(num_cpus=0), **options)


"""


def run(*command: str, timeout: float = 110) -> str:
    """Run Python in a process of its own, and return what it wrote."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": python_path(),
                "RAY_AUTH_MODE": "disabled",  # it would leave a token at home
                "RAY_TMPDIR": directory,  # where it would find what others have begun
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def python_path() -> str:
    import predictpool

    return os.pathsep.join([str(Path(predictpool.__file__).parent.parent), str(ROOT)])


@pytest.mark.timeout(300)
def test_pools_of_actors_pass_the_tests_of_pools_of_processes() -> None:
    from tests import on_ray

    files = [*on_ray.files(), str(Path(__file__).with_name("ray_alone.py"))]
    said = run("-m", "pytest", "-q", "-rA", "-p", "tests.on_ray", *files, timeout=280)
    missing = [
        name for names in on_ray.SHARED.values() for name in names if f"::{name}" not in said
    ]
    assert not missing, said


# --- what is begun is ended --------------------------------------------------------

BEGUN = """
import logging
import threading
import warnings

import ray


async def main():
    before = signal.getsignal(signal.SIGTERM)
    async with on() as first:
        assert ray.is_initialized()
        async with on(workers=None) as second:
            assert (await second.predict([1.0])).tolist() == [2.0]
        assert (await first.predict([1.0])).tolist() == [2.0]  # the connection is its own, too
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not logging.getLogger().handlers + logging.getLogger("ray").handlers
    assert not [t for t in threading.enumerate() if t.name == "predictpool ray"]


async def leave_it_open():
    pool = on()
    await pool.open()
    assert len(actors()) == 1


asyncio.run(main())
assert gone_within(5)
with warnings.catch_warnings(action="ignore"):  # that it was never closed
    asyncio.run(leave_it_open())
assert gone_within(5)
ray = subprocess.run(["pgrep", "-P", str(os.getpid()), "-l"], stdout=subprocess.PIPE, text=True)
assert "raylet" not in ray.stdout, ray.stdout
"""


def test_ray_that_pools_have_begun_ends_with_the_last_of_them_or_with_their_loop() -> None:
    run("-c", START + BEGUN)


PLANNED = """
import gc

import ray


async def main():
    pool = on(workers=None)
    assert len(pool.plan()) >= 1
    assert ray.is_initialized()
    del pool
    gc.collect()
    with anyio.fail_after(20):
        while ray.is_initialized():
            await anyio.sleep(0.01)


asyncio.run(main())
"""


def test_ray_that_was_begun_for_a_plan_ends_with_the_pool_that_nobody_opened() -> None:
    run("-c", START + PLANNED)


SHUT_DOWN = """
import ray


async def main():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    pool = on(grace_period=None, retries=0)
    await pool.open()
    ray.shutdown()
    for _ in range(2):
        try:
            await pool.predict([1.0])
        except Exception as error:
            print(type(error).__name__, "shut down" in str(error))
    await pool.aclose()
    assert not ray.is_initialized()


asyncio.run(main())
"""


def test_a_pool_whose_ray_was_shut_down_says_so_and_can_be_closed() -> None:
    said = run("-c", START + SHUT_DOWN)
    assert "BrokenWorkerError" in said
    assert "WorkerStartError True" in said


# --- who cannot have it ------------------------------------------------------------

TRIO = """
import trio


async def main():
    try:
        await on().open()
    except RuntimeError as error:
        assert "needs asyncio or uvloop" in str(error), error
        assert "ray" not in sys.modules
        print("told")


trio.run(main)
"""


def test_trio_is_told_at_once() -> None:
    assert run("-c", START + TRIO) == "told\n"


def test_where_ray_is_missing_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from predictpool import RayLauncher

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "predictpool\[ray\]"'):
        RayLauncher()


UNREACHABLE = """
async def main():
    try:
        await on(RayLauncher(address="127.0.0.1:1"), workers=WORKERS).open()
    except Exception as error:
        print(type(error).__name__, error)


asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("workers", "begins"),
    [
        ("1", "WorkerStartError the worker of slot 0 could not be started: "),
        ("None", "ConnectionError "),
    ],
)
def test_a_cluster_that_is_not_there_is_one_clear_error(workers: str, begins: str) -> None:
    said = run("-c", START + UNREACHABLE.replace("WORKERS", workers))
    assert said.startswith(f"{begins}no Ray cluster can be reached at '127.0.0.1:1'"), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": 6379}, "address is 6379, expected text or None"),
        ({"address": "ray://head:10001"}, "is for Ray Client: run the application on a node"),
        ({"num_cpus": -1}, "num_cpus is -1, expected 0 or more"),
        ({"num_cpus": "two"}, "num_cpus is 'two', expected a number"),
        ({"num_gpus": 1.5}, "num_gpus is 1.5, expected a whole number beyond 1"),
        ({"resources": ["pony"]}, r"resources is \['pony'\], expected a mapping"),
        ({"resources": {"CPU": 1}}, "resources has 'CPU': give num_cpus= instead"),
        ({"resources": {"pony": True}}, r"resources\['pony'\] is True, expected a number"),
        ({"runtime_env": "pip"}, "runtime_env is 'pip', expected a mapping or None"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(options: dict[str, Any], message: str) -> None:
    from predictpool import RayLauncher

    with pytest.raises((TypeError, ValueError), match=message):
        RayLauncher(**options)


# --- ends that nobody wanted -------------------------------------------------------

DRIVER = """
async def main():
    async with on(RayLauncher(address="auto", num_cpus=0), workers=2) as pool:
        await pool.wait_ready()
        print("ready", flush=True)
        await anyio.sleep_forever()


asyncio.run(main())
"""

DEATH = """
import threading

import ray


async def close_while_the_model_runs():
    predictor = FunctionPredictor(lambda: lambda x: threading.Event().wait())
    async with PredictorPool(predictor, launcher=RayLauncher(num_cpus=0), grace_period=0) as pool:
        running = asyncio.create_task(pool.predict([1.0]))
        while not pool.statistics().running:
            await asyncio.sleep(0)
    try:
        await running
    except PoolClosed:
        print("closed")


ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
asyncio.run(close_while_the_model_runs())
assert gone_within(10), actors()
driver = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
assert driver.stdout.readline() == "ready\\n"
assert len(actors()) == 2
driver.kill()
driver.wait()
assert gone_within(20), actors()
ray.shutdown()
"""


def test_actors_end_with_their_pool_and_with_the_program_that_had_them() -> None:
    assert "closed\n" in run("-c", START + DEATH, START + DRIVER)


# --- a node dies -------------------------------------------------------------------

NODE = """
import ray
from ray.cluster_utils import Cluster

CALLERS, LEAST = 16, 300


async def main(cluster, nodes):
    asked = answered = 0
    killed = anyio.Event()
    async with on(RayLauncher(num_cpus=1), workers=4, retries=3) as pool:
        await pool.wait_ready()
        before = {worker.pid for worker in pool.workers()}

        async def ask(number):
            nonlocal asked, answered
            while not (killed.is_set() and answered > LEAST and pool.statistics().restarts):
                asked += 1
                rows = np.array([number, asked], float)
                assert (await pool.predict(rows)).tolist() == (rows * 2).tolist()
                answered += 1

        async with anyio.create_task_group() as group:
            for number in range(CALLERS):
                group.start_soon(ask, number)
            while answered < LEAST // 2:
                await anyio.sleep(0)
            await anyio.to_thread.run_sync(cluster.remove_node, nodes[0], False)
            killed.set()
        await pool.wait_ready(3)
        after = {worker.pid for worker in pool.workers()}
        assert len(before - after) >= 1
        now = pool.statistics()
        assert (now.submitted, now.failed) == (asked, 0)
        assert asked == answered == now.answered


cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
)
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
cluster.connect()
asyncio.run(main(cluster, nodes))
ray.shutdown()
cluster.shutdown()
assert gone_within(10)
"""


def test_no_request_is_lost_when_a_node_is_killed_under_load() -> None:
    run("-c", START + NODE)
