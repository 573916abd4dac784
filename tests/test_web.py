"""The examples of web applications in the documentation keep what they promise.

Each runs as its own file says, behind the server that it names, and is asked over a socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tests import embedded, needs
from tests.conftest import Family
from tests.stage import Stage

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "examples" / "web"
GUNICORN = ["-m", "gunicorn", "--threads=4", "--bind=127.0.0.1:0", f"--chdir={FOLDER}"]


@dataclass(frozen=True)
class Example:
    """How an example is run.

    Attributes:
        needs: distributions that it imports.
        command: what Python is given.
        ends_by: what ends it in good order.
        hears_clients_go: whether it is told when a client goes away.
    """

    needs: tuple[str, ...]
    command: list[str]
    ends_by: signal.Signals = signal.SIGTERM
    hears_clients_go: bool = True


EXAMPLES = {
    "starlette": Example(("starlette", "uvicorn"), [str(FOLDER / "starlette_app.py")]),
    "fastapi": Example(("fastapi", "uvicorn"), [str(FOLDER / "fastapi_app.py")]),
    "aiohttp": Example(("aiohttp",), [str(FOLDER / "aiohttp_app.py")]),
    "quart": Example(("quart", "uvicorn"), [str(FOLDER / "quart_app.py")]),
    "django": Example(("django", "uvicorn"), [str(FOLDER / "django_app.py")]),
    "flask": Example(
        ("flask", "gunicorn"), [*GUNICORN, "flask_app:create_app()"], hears_clients_go=False
    ),
    "flask alone": Example(
        ("flask",),
        [str(FOLDER / "flask_app.py")],
        ends_by=signal.SIGINT,  # the server that comes with it is for trying, and knows no other
        hears_clients_go=False,
    ),
}


def those(condition: Callable[[Example], bool]) -> pytest.MarkDecorator:
    """Run a test with some of the examples, as far as there is what they need."""
    return pytest.mark.parametrize(
        "example",
        [
            pytest.param(example, id=name, marks=_needs(example))
            for name, example in EXAMPLES.items()
            if condition(example)
        ],
    )


def _needs(example: Example) -> pytest.MarkDecorator:
    missing = [name for name in example.needs if needs.version_of(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


ALL = those(lambda _: True)
ENDS_BY_SIGTERM = those(lambda example: example.ends_by == signal.SIGTERM)
HEARS_CLIENTS_GO = those(lambda example: example.hears_clients_go)


@dataclass
class Server:
    """An example that listens on a port of its own choice."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int = 0
    connections: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def log(self) -> str:
        """What it has said."""
        return self.log_file.read_text()

    def listens(self) -> bool:
        """Whether it takes connections: not yet, or not any more. If so, its port is known."""
        assert self.process.poll() is None, self.log
        for connection in psutil.Process(self.process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                self.port = connection.laddr.port
                return True
        return False

    def ask(self, age: float) -> HTTPConnection:
        """Send a request; `answer` waits for what comes back."""
        return self.send({"age": [age], "hours_per_week": [50]})

    def send(self, body: object) -> HTTPConnection:
        """Send something to predict; text as it is."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.connections.callback(connection.close)
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/predict", text, headers)
        return connection

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Return the status of the readiness, and the statistics that come with it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.connections.callback(connection.close)
        connection.request("GET", "/ready", headers={"Connection": "close"})
        with connection.getresponse() as response:
            return response.status, json.loads(response.read())

    def is_counted(self, statistic: str) -> bool:
        """Whether there is one of these."""
        return bool(self.ready()[1][statistic] == 1)

    def ends_in_good_order(self, by: signal.Signals, family: Family) -> None:
        """Wait for its end, after which nothing is left."""
        # uvicorn ends by the signal that it got.
        assert self.process.wait(20) in (0, -by), self.log
        assert family.gone_within(1)
        assert "PredictorPool" not in self.log  # no warning of ours


@contextlib.contextmanager
def serving(command: list[str], folder: Path) -> Iterator[Server]:
    """Run an example until it listens, and end it."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(process, log)
    try:
        until(server.listens)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.connections.close()


def staged(example: Example) -> list[str]:
    """Return how an example runs with a pool of the test's."""
    return ["-m", "tests.embedded", *example.command]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does and tells nobody."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer(asked: HTTPConnection) -> tuple[int, Any]:
    """Wait for what a server answers: the status, and the body as far as it is JSON."""
    with asked.getresponse() as response:
        body = response.read()
        if response.headers.get_content_type() == "application/json":
            return response.status, json.loads(body)
        return response.status, body.decode()


def refusal(asked: HTTPConnection) -> tuple[int, str, str | None]:
    """Wait for an answer to what went wrong: the status, the error, when to come again."""
    with asked.getresponse() as response:
        body = json.loads(response.read())
        assert body["message"]
        assert "SIGKILL" not in body["message"]  # nor anything else of what happened to a worker
        return response.status, body["error"], response.headers["Retry-After"]


def hold(server: Server, stage: Stage) -> HTTPConnection:
    """Have the worker run a request until the test lets it go."""
    asked = server.ask(embedded.HELD)
    assert anyio.run(stage.hears) == "predicting"
    return asked


@pytest.fixture(autouse=True)
def surroundings(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show warnings, choose any port, and keep gunicorn's socket where it belongs."""
    monkeypatch.setenv("STAGE", str(stage.door.folder))
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@ALL
def test_it_answers_and_ends(example: Example, tmp_path: Path, nothing_left: Family) -> None:
    with serving(example.command, tmp_path) as server:
        status, statistics = server.ready()
        assert (status, statistics["workers"], statistics["answered"]) == (200, 2, 0)
        assert statistics["ready"] >= 1
        people = {"age": [40, 60], "hours_per_week": [50, 50]}
        status, outputs = answer(server.send(people))
        assert (status, list(outputs)) == (200, ["probability"])
        assert outputs["probability"] == pytest.approx([0.5, 0.731059])
        server.process.send_signal(example.ends_by)
        server.ends_in_good_order(example.ends_by, nothing_left)
        assert "Traceback" not in server.log


@ALL
def test_it_says_what_is_wrong_with_a_request(example: Example, tmp_path: Path) -> None:
    with serving(example.command, tmp_path) as server:
        status, body = answer(server.send({"age": [40, 60], "hours_per_week": [50]}))
        assert (status, body["error"]) == (422, "InvalidFeatures")
        assert {"message", "feature", "given", "expected"} <= set(body)
        assert "hours_per_week" in body["message"]
        status, body = answer(server.send("{"))
        assert status in (400, 422)  # FastAPI's own checks have the latter
        assert "Traceback" not in server.log


@ENDS_BY_SIGTERM
def test_errors_have_their_status(example: Example, stage: Stage, tmp_path: Path) -> None:
    with serving(staged(example), tmp_path) as server:
        running = hold(server, stage)
        assert refusal(server.ask(embedded.LATE)) == (504, "PoolTimeout", None)
        waiting = server.ask(40)
        until(lambda: server.is_counted("waiting"))
        assert refusal(server.ask(40)) == (429, "TooManyRequests", "1")
        stage.let_go()
        assert answer(running)[0] == answer(waiting)[0] == 200
        assert refusal(server.ask(embedded.KILLED)) == (503, "BrokenWorkerError", "1")
        status, body = answer(server.ask(embedded.BROKEN))
        assert status == 500
        assert embedded.SECRET not in str(body)
        until(lambda: embedded.SECRET in server.log)
        until(lambda: "SIGKILL" in server.log)
        assert refusal(server.ask(embedded.CLOSED)) == (503, "PoolClosed", "1")


@ENDS_BY_SIGTERM
def test_it_is_ready_while_a_worker_is(
    example: Example, stage: Stage, tmp_path: Path, nothing_left: Family
) -> None:
    with serving(staged(example), tmp_path) as server:
        assert server.ready()[0] == 200
        (tmp_path / "slow").touch()
        assert answer(server.ask(embedded.KILLED))[0] == 503
        assert anyio.run(stage.hears) == "loading"
        assert server.ready()[0] == 503
        stage.let_go()
        until(lambda: server.ready()[0] == 200)
        assert answer(server.ask(embedded.CLOSED))[0] == 503
        assert server.ready()[0] == 503
        server.process.terminate()
        server.ends_in_good_order(signal.SIGTERM, nothing_left)


@HEARS_CLIENTS_GO
def test_a_client_that_goes_away_cancels_its_prediction(
    example: Example, stage: Stage, tmp_path: Path
) -> None:
    with serving(staged(example), tmp_path) as server:
        gone = hold(server, stage)
        assert server.ready()[1]["cancelled"] == 0
        gone.close()
        until(lambda: server.is_counted("cancelled"))
        stays = server.ask(40)
        stage.let_go()
        assert answer(stays)[0] == 200
        assert "Traceback" not in server.log


@ENDS_BY_SIGTERM
def test_sigterm_drains(
    example: Example, stage: Stage, tmp_path: Path, nothing_left: Family
) -> None:
    with serving(staged(example), tmp_path) as server:
        running = hold(server, stage)
        server.process.terminate()
        until(lambda: not server.listens())
        stage.let_go()
        assert answer(running)[0] == 200
        server.ends_in_good_order(signal.SIGTERM, nothing_left)
        assert server.log.count(embedded.CLOSED_ITSELF) == 1
        assert "Traceback" not in server.log


@ENDS_BY_SIGTERM
def test_a_model_that_does_not_load_ends_the_server(
    example: Example, tmp_path: Path, nothing_left: Family
) -> None:
    (tmp_path / "wrong").touch()
    log = tmp_path / "log"
    with log.open("wb") as output:
        status = subprocess.run(
            [sys.executable, *staged(example)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            timeout=40,
            check=False,
        ).returncode
    assert status > 0, log.read_text()
    assert embedded.SECRET in log.read_text()
    assert nothing_left.gone_within(1)


# --- a notebook -----------------------------------------------------------------------

EXECUTE = """
import sys
import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=40).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.skipif(
    needs.version_of("nbclient") is None or needs.version_of("ipykernel") is None,
    reason="needs nbclient, ipykernel",
)
def test_the_notebook_says_what_it_shows(
    tmp_path: Path, nothing_left: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # otherwise they write into one's home
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    source, executed = ROOT / "docs" / "examples" / "notebook.ipynb", tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, source, executed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert outputs_of(executed) == outputs_of(source)
    assert nothing_left.gone_within(1)


def outputs_of(notebook: Path) -> dict[str, Any]:
    """Return what a notebook's cells have put out, by their ids."""
    cells = json.loads(notebook.read_text())["cells"]
    return {cell["id"]: cell["outputs"] for cell in cells if cell["cell_type"] == "code"}
