"""What all tests share: the event loops, a stage for workers, and a watch on what they leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blockbuster import BlockBuster

from predictpool import PredictorPool
from predictpool import _slot as slot_module
from predictpool.testing import InlinePool
from tests.stage import Stage

LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run a test on every event loop."""
    return request.param


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Where workers are held and heard."""
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_not_ignored() -> None:
    """Do away with what a shell does to what it runs in the background: children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds, so that a slot is given up quickly."""

    class Quick(slot_module.Backoff):
        def __init__(self) -> None:
            super().__init__(first=0.001, longest=0.002, tries=3)

    monkeypatch.setattr(slot_module, "Backoff", Quick)


@pytest.fixture
def either_pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a test make its pools of the kind that `tests.pools.both_pools` gives it."""
    if request.param == "inline":
        monkeypatch.setattr(request.module, "PredictorPool", InlinePool)


# --- what a test leaves behind -----------------------------------------------------


class Family:
    """Every process that a test started, however far it has moved away from us.

    They are told by a mark in their environment, which all descendants inherit: neither a
    change of the process group or session nor the death of a parent hides them.
    """

    MARK = "PREDICTPOOL_TEST"

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def pids(self) -> list[int]:
        """Those that are alive; a zombie has no environment any more."""
        wanted = f"{self.MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return found

    def gone_within(self, seconds: float, these: set[int] | None = None) -> bool:
        """Whether all of them, or these, end in time.

        It polls: the end of a process that is not our child is no event for us.
        """
        deadline = time.monotonic() + seconds
        while set(self.pids()) & these if these is not None else self.pids():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def __str__(self) -> str:
        return ", ".join(
            f"{pid} ({Path(f'/proc/{pid}/cmdline').read_bytes().decode()!r})" for pid in self.pids()
        )


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """All processes of a test, gone when it ends."""
    family = Family()
    monkeypatch.setenv(Family.MARK, family.mark)
    yield family
    left = "" if family.gone_within(5) else str(family)
    for pid in family.pids():
        os.kill(pid, 9)
    assert not left, f"processes were left behind: {left}"


def descriptors() -> dict[str, str]:
    """Return the open file descriptors of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - iterdir needs one of its own
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - it is no path
    return found


@pytest.fixture(scope="session")
def settled() -> None:
    """Have uvloop open the pipe that it keeps for the life of the process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


@pytest.fixture
def nothing_left(family: Family, settled: None) -> Iterator[Family]:  # noqa: ARG001
    """Fail a test that leaves processes, file descriptors or threads behind."""
    before, threads = descriptors(), set(threading.enumerate())
    yield family
    if descriptors() != before:
        gc.collect()  # not always: it takes longer than most tests
    after = descriptors()
    left = {name: target for name, target in after.items() if before.get(name) != target}
    assert not left, f"file descriptors were left open: {left}"
    # A pool that watches looks in a thread that anyio keeps for its event loop, or trio for ten
    # seconds; and anyio's test runner for trio uses one, too.
    theirs = ("Trio thread", "AnyIO worker thread")
    new = {t for t in threading.enumerate() if not t.name.startswith(theirs)} - threads
    assert not new, f"threads were left running: {new}"


@pytest.fixture
def mistakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """Fail a test in which our own code failed, also where no caller was left to be told."""
    found: list[Exception] = []
    on_bug = PredictorPool._on_bug

    def note(pool: PredictorPool[Any], error: Exception) -> None:
        found.append(error)
        on_bug(pool, error)

    monkeypatch.setattr(PredictorPool, "_on_bug", note)
    yield found
    assert not found


# --- blocking the event loop -------------------------------------------------------


@pytest.fixture(scope="module")
def never_blocking() -> Iterator[None]:
    """Fail on asyncio and uvloop what blocks the loop in our code.

    Known and accepted: the template's start (``subprocess.Popen`` waits some milliseconds for
    its ``exec``), reading what the kernel keeps in memory (what the cgroup says; whether there
    is a driver of GPUs; a dead worker's report), and waiting for the template after it was
    killed, or for the thread of an inline worker that has nothing to do any more.
    """
    detector = BlockBuster(scanned_modules=["predictpool"])
    accepted: list[tuple[str, set[str]]] = [
        ("subprocess.py", {"_execute_child"}),
        ("predictpool/_cgroup.py", {"_read"}),
        ("predictpool/_gpus.py", {"has_driver"}),
        ("predictpool/_local_worker.py", {"_report_end"}),
        ("predictpool/_local_launcher.py", {"_reap"}),
        ("predictpool/testing.py", {"_let_go"}),
    ]
    for function in detector.functions.values():
        for file, names in accepted:
            function.can_block_in(file, names)
    detector.activate()
    yield
    detector.deactivate()
