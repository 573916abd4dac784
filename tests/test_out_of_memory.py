"""A worker that the kernel killed for lack of memory is told from one that somebody killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from predictpool import BrokenWorkerError, FunctionPredictor, PredictorPool
from predictpool import _local_worker as local_worker_module
from predictpool._cgroup import oom_kills
from predictpool._launcher import End
from tests.control_groups import control_group
from tests.pools import POOL_TEST

pytestmark = [*POOL_TEST, pytest.mark.faults]

LIMIT = 400 << 20

APPLICATION = """
import os, sys
import anyio
from predictpool import BrokenWorkerError, FunctionPredictor, PredictorPool

with open(sys.argv[1], "w") as processes:
    processes.write(str(os.getpid()))

def load():
    def predict(x):
        if x[0] < 0:
            hoard = [b"x" * (1 << 20) for _ in range(10_000)]
        return x * 2
    return predict

async def main():
    async with PredictorPool(FunctionPredictor(load), workers=1, retries=0) as pool:
        try:
            await pool.predict([-1.0])
        except BrokenWorkerError as error:
            print(error.signal, error.cause, str(error), sep="|")
        print((await pool.predict([1.0])).tolist())

anyio.run(main)
"""


def test_a_kill_for_lack_of_memory_is_named_as_such_and_the_slot_refills() -> None:
    little = str(LIMIT)
    with control_group(
        "memory", {"memory.limit_in_bytes": little}, {"memory.max": little}
    ) as processes:
        told = subprocess.run(
            [sys.executable, "-c", APPLICATION, str(processes)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    first, second = told.splitlines()
    number, cause, text = first.split("|")
    assert int(number) == signal.SIGKILL
    assert cause.startswith("the kernel, for lack of memory")
    assert cause in text
    assert second == "[2.0]"


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ([3, 3], "somebody's kill -9: the kernel has counted no kill for lack of memory"),
        ([3, 4], "the kernel, for lack of memory"),
        ([None, None], "often the kernel, short of memory; or somebody's kill -9"),
    ],
    ids=["none", "one", "nobody counts"],
)
async def test_the_kernels_count_tells_which_kill_it_was(
    monkeypatch: pytest.MonkeyPatch, counts: list[int | None], cause: str
) -> None:
    # The first is read when the worker starts, the last when it has ended.
    left = [*counts]
    monkeypatch.setattr(
        local_worker_module, "oom_kills", lambda: left.pop(0) if len(left) > 1 else left[0]
    )

    def predict(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    predictor = FunctionPredictor(lambda: predict)
    async with PredictorPool(predictor, workers=1, retries=0) as pool:
        with pytest.raises(BrokenWorkerError) as caught:
            await pool.predict([1.0])
    assert caught.value.cause.startswith(cause)
    assert f"was ended by SIGKILL ({cause}" in str(caught.value)


def test_a_kill_of_our_own_and_other_signals_are_not_taken_for_it() -> None:
    ours = End(None, signal.SIGKILL, "", False, "ran too long", out_of_memory=True)
    assert str(ours) == "was killed: it ran too long"
    assert ours.cause == ""
    crash = End(None, signal.SIGSEGV, "", False, "", out_of_memory=True)
    assert crash.cause.startswith("a bug in native code")
    unknown = End(None, signal.SIGUSR1, "", False, "")
    assert str(unknown) == "was ended by SIGUSR1"


# --- where the kernel counts -------------------------------------------------------


def counted(root: Path, files: dict[str, str]) -> int | None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return oom_kills(root)


EVENTS = "low 0\nhigh 2\nmax 7\noom 6\noom_kill 5\noom_group_kill 9\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/memory.events": EVENTS},
        {"proc/self/cgroup": "0::/../host/app\n", "sys/fs/cgroup/memory.events": EVENTS},
        {
            "proc/self/cgroup": "5:memory:/app\n4:cpu:/other\n0::/\n",
            "sys/fs/cgroup/memory/app/memory.oom_control": CONTROL,
            "sys/fs/cgroup/memory/memory.oom_control": CONTROL.replace("5", "8"),
            "sys/fs/cgroup/memory/other/memory.oom_control": CONTROL.replace("5", "9"),
        },
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.oom_control": CONTROL,
        },
    ],
    ids=["v2", "v2, another namespace", "v1", "v1 in a container"],
)
def test_kills_are_counted_in_the_group_of_this_process(
    tmp_path: Path, files: dict[str, str]
) -> None:
    assert counted(tmp_path, files) == 5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/app\n"},
        {"proc/self/cgroup": "5:memory:/\n", "sys/fs/cgroup/memory/memory.oom_control": "x 1\n"},
    ],
    ids=["no /proc", "no file", "an old kernel"],
)
def test_where_nobody_counts_nothing_is_said(tmp_path: Path, files: dict[str, str]) -> None:
    assert counted(tmp_path, files) is None
