"""A pool inside the servers and test runners that users have serves, and ends with them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tests.conftest import Family
from tests.stage import Stage

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(60),
    pytest.mark.usefixtures("nothing_left"),
]

ROOT = Path(__file__).parents[1]
HELD = -1  # the number that `tests.served` holds on the stage

UVICORN = ["uvicorn", "tests.served:app", "--port", "0"]
GUNICORN = [
    "gunicorn",
    "tests.served:app",
    "-b",
    "127.0.0.1:0",
    "-k",
    "uvicorn_worker.UvicornWorker",
]
TWO_WORKERS = pytest.mark.parametrize(
    "command", [[*UVICORN, "--workers", "2"], [*GUNICORN, "-w", "2"]], ids=["uvicorn", "gunicorn"]
)

SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"]
)


class Server:
    """A server with `tests.served`, in a session of its own as on a terminal of its own."""

    def __init__(self, command: list[str], processes: int) -> None:
        self._output, output = os.pipe()
        self._connections = contextlib.ExitStack()
        self.log = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        os.close(output)
        try:
            self._wait_until_it_serves(processes)
        except BaseException:
            self.close()
            raise

    def _wait_until_it_serves(self, processes: int) -> None:
        (port, *_) = self.logs(r"http://127\.0\.0\.1:(\d+) ")
        self._port = int(port)
        self.logs("Application startup complete", processes)
        self.pids = {int(pid) for pid in self.logs(r"Started server process \[(\d+)\]", processes)}
        deadline = time.monotonic() + 15
        while True:  # uvicorn's workers begin to listen later, and say nothing of it
            try:
                answer(self.ask(1))
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.01)
            else:
                return

    def logs(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until the server has said something so many times."""
        while len(found := re.findall(pattern, self.log)) < times:
            assert self._reads(), f"no {pattern!r} in:\n{self.log}"
        return found

    def _reads(self) -> bytes:
        assert select.select([self._output], [], [], 20)[0], self.log
        data = os.read(self._output, 65536)
        self.log += data.decode()
        return data

    def ask(self, number: float) -> HTTPConnection:
        """Send a request; `answer` waits for what comes back."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        self._connections.callback(connection.close)
        connection.request("GET", f"/{number}", headers={"Connection": "close"})
        return connection

    def ends_in_good_order(self, family: Family) -> int:
        """Wait for its end, after which nothing is left, and return its exit status."""
        status = self.process.wait(20)
        assert family.gone_within(1)
        while self._reads():
            pass
        assert "Traceback" not in self.log
        assert "PredictorPool" not in self.log  # no warning of ours; uvicorn has some of its own
        assert self.log.count("closed, 0 processes left\n") == len(self.pids)
        return status

    def close(self) -> None:
        """End it now; its processes are in its group, and no pool's are."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._connections.close()
        os.close(self._output)


@contextlib.contextmanager
def serving(command: list[str], processes: int = 1) -> Iterator[Server]:
    """Run a server until all its processes serve, and end it."""
    server = Server(command, processes)
    try:
        yield server
    finally:
        server.close()


def answer(asked: HTTPConnection) -> Any:
    """Wait for what a server answers."""
    with asked.getresponse() as response:
        assert response.status == 200
        return json.loads(response.read())


@pytest.fixture(autouse=True)
def surroundings(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show warnings, and keep out of the inner runs what is meant for this one."""
    monkeypatch.setenv("STAGE", str(stage.door.folder))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where gunicorn puts its socket
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def hold(server: Server, stage: Stage) -> HTTPConnection:
    """Have a worker run a request until the test lets it go."""
    asked = server.ask(HELD)
    anyio.run(stage.hears)
    return asked


@contextlib.contextmanager
def only(pid: int, server: Server) -> Iterator[None]:
    """Have one process of a server accept what comes now, by stopping the others."""
    others = server.pids - {pid}
    for other in others:
        os.kill(other, signal.SIGSTOP)
        while psutil.Process(other).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)  # until the signal has reached the core that it runs on
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def family_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


# --- servers -----------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@SIGNALS
def test_a_server_that_is_told_to_end_answers_what_runs_and_refuses_the_rest(
    loop: str, number: signal.Signals, stage: Stage, nothing_left: Family
) -> None:
    with serving([*UVICORN, "--loop", loop]) as server:
        assert answer(server.ask(3)) == {"outputs": [6.0], "server": server.process.pid}
        running = hold(server, stage)
        tell_to_end(server, number)
        server.logs("Waiting for connections to close")
        with pytest.raises(ConnectionRefusedError):
            server.ask(3)
        stage.let_go()
        assert answer(running)["outputs"] == [-2.0]
        # uvicorn ends by the signal that it got, but for Ctrl-C.
        assert server.ends_in_good_order(nothing_left) in (0, -number)


def tell_to_end(server: Server, number: signal.Signals) -> None:
    if number == signal.SIGINT:
        os.killpg(server.process.pid, number)  # as the terminal does it
    else:
        server.process.send_signal(number)


@TWO_WORKERS
@SIGNALS
def test_server_processes_with_a_pool_each_all_serve_and_end_together(
    command: list[str], number: signal.Signals, stage: Stage, nothing_left: Family
) -> None:
    with serving(command, 2) as server:
        for pid in server.pids:
            with only(pid, server):
                assert answer(server.ask(3)) == {"outputs": [6.0], "server": pid}
        running = hold(server, stage)
        tell_to_end(server, number)
        server.logs("Waiting for connections to close")
        stage.let_go()
        assert answer(running)["outputs"] == [-2.0]
        assert server.ends_in_good_order(nothing_left) == 0


@TWO_WORKERS
def test_a_server_process_that_is_killed_takes_its_pool_along_and_no_other(
    command: list[str], stage: Stage, nothing_left: Family
) -> None:
    with serving(command, 2) as server:
        killed, serves_on = server.pids
        with only(killed, server):
            hold(server, stage)
        with only(serves_on, server):
            running = hold(server, stage)
        pool, others = family_of(killed), family_of(serves_on)
        assert len(pool) == len(others) == 3  # the template and two workers
        os.kill(killed, signal.SIGKILL)
        assert nothing_left.gone_within(1, pool)
        assert others <= set(nothing_left.pids())
        stage.let_go()
        assert answer(running) == {"outputs": [-2.0], "server": serves_on}


@TWO_WORKERS
def test_servers_that_are_killed_with_their_parent_leave_no_process(
    command: list[str], stage: Stage, nothing_left: Family
) -> None:
    with serving(command, 2) as server:
        hold(server, stage)
        for pid in (server.process.pid, *server.pids):
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
        assert nothing_left.gone_within(1)


# --- test runners ------------------------------------------------------------------

INNER = """
import anyio
import pytest
from predictpool import FunctionPredictor, PredictorPool

def doubling():
    return PredictorPool(FunctionPredictor(lambda: lambda x: x * 2), workers=1)
"""

# With a fixture of the scope SCOPE that holds an open pool.
FIXTURE = """
async def pool():
    async with doubling() as pool:
        yield pool

@pytest.mark.parametrize("number", [1.0, 2.0, 3.0])
async def test_answers(pool, number):
    assert (await pool.predict([number])).tolist() == [2 * number]
"""

PYTEST_ASYNCIO = """
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope=SCOPE)

@pytest_asyncio.fixture(scope=SCOPE, loop_scope=SCOPE)"""

ANYIO = """
LOOPS = ["asyncio", ("asyncio", {"use_uvloop": True}), "trio"]

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module", params=LOOPS, ids=["asyncio", "uvloop", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture(scope=SCOPE)"""

PYTEST_XDIST = """
@pytest.mark.parametrize("number", [1.0, 2.0])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_answers(loop, number, worker_id):
    async def main():
        async with doubling() as pool:
            assert (await pool.predict([number])).tolist() == [2 * number]

    assert worker_id in ("gw0", "gw1")
    anyio.run(main, backend=loop)
"""

SCOPES = pytest.mark.parametrize("scope", ["function", "module"])


def inner_pytest(folder: Path, family: Family, script: str, *options: str) -> str:
    """Have pytest run a script, with warnings as errors, and return its last line.

    After its end nothing is left.
    """
    log = folder / "log"  # no pipe: that would wait for whatever is left
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    (folder / "test_inner.py").write_text(INNER + script)
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, folder],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=45,
            check=False,
        )
    assert family.gone_within(1)
    assert done.returncode == 0, log.read_text()
    return log.read_text().splitlines()[-1]


@SCOPES
def test_a_fixture_of_pytest_asyncio_can_hold_an_open_pool(
    scope: str, tmp_path: Path, nothing_left: Family
) -> None:
    script = f"SCOPE = {scope!r}" + PYTEST_ASYNCIO + FIXTURE
    assert " 3 passed in " in inner_pytest(tmp_path, nothing_left, script)


@SCOPES
def test_a_fixture_of_anyio_can_hold_an_open_pool(
    scope: str, tmp_path: Path, nothing_left: Family
) -> None:
    script = f"SCOPE = {scope!r}" + ANYIO + FIXTURE
    assert " 9 passed in " in inner_pytest(tmp_path, nothing_left, script)


def test_tests_that_run_side_by_side_under_pytest_xdist_open_pools_of_their_own(
    tmp_path: Path, nothing_left: Family
) -> None:
    assert " 4 passed in " in inner_pytest(tmp_path, nothing_left, PYTEST_XDIST, "-n", "2")
