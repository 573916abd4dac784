"""``predictpool serve`` as a process, with clients that nobody here wrote."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from tests.conftest import Family
from tests.stage import Stage

for needed in ("httptools", "orjson", "prometheus_client", "typer", "uvicorn"):
    pytest.importorskip(needed, reason=f"needs {needed}, of the extra serve")

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[1]

MODELS = """
    import os
    from pathlib import Path

    import numpy as np
    from predictpool import FunctionPredictor
    from tests.stage import StageDoor

    SIGNATURE = {"age": (np.float32, (3,)), "job": (str, ()), "ids": (np.int64, (None,))}

    def load():
        return lambda features: {
            "score": features["age"].sum(axis=1),
            "job": features["job"],
            "ids": features["ids"] * 2,
        }

    people = FunctionPredictor(load, row_wise=True, signature=SIGNATURE)
    half_plus_two = FunctionPredictor(lambda: lambda x: x / 2 + 2, signature=(np.float32, ()))

    def load_held():
        door = StageDoor(Path(os.environ["STAGE"]))

        def predict(x):
            if x[0] < 0:
                door.hold(os.getpid())
            return x * 2

        return predict

    held = FunctionPredictor(load_held, signature=(np.float64, ()))
    listing = FunctionPredictor(lambda: lambda x: x.tolist(), signature=(np.float64, ()))
    dated = FunctionPredictor(lambda: lambda x: x, signature=(np.dtype("M8[s]"), ()))

    def load_picky():
        def predict(x):
            if x[0] == 0:
                raise ValueError("zero")
            return x

        return predict

    picky = FunctionPredictor(load_picky, row_wise=True, signature=(np.float32, ()))
    ones = [1.0]
    minus_one = [-1.0]
    broken = FunctionPredictor(lambda: 1)
    number = 1
"""


def command(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return how `subprocess` runs the command."""
    (folder / "models.py").write_text(textwrap.dedent(MODELS))
    code = "from predictpool._cli import main; main()"
    return {
        # -P: as with the console script, the current directory is not on the path by itself.
        "args": [sys.executable, "-P", "-c", code, "serve", *arguments],
        "cwd": folder,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        "text": True,
    }


class Server:
    """A server that is ready."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.errors = folder / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                **command(folder, *arguments, "--port", "0", "--json"),
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0]
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.said = json.loads(line)
        self.address = self.said["url"].removeprefix("http://")

    def connection(self) -> HTTPConnection:
        return HTTPConnection(self.address, timeout=20)

    def post(self, path: str, document: Any) -> tuple[int, Any]:
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST", path, json.dumps(document))
            return answer(connection)

    def get(self, path: str) -> tuple[int, Any]:
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path)
            return answer(connection)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def answer(connection: HTTPConnection) -> tuple[int, Any]:
    with connection.getresponse() as response:
        return response.status, json.loads(response.read())


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model with named features."""
    with serving(tmp_path_factory.mktemp("people"), "models:people", "--workers", "2") as server:
        yield server
        errors = server.errors.read_text()
        assert "Traceback" not in errors
        assert "ERROR" not in errors


# --- tritonclient ------------------------------------------------------------------


@pytest.fixture
def triton(people: Server) -> Iterator[Any]:
    module = pytest.importorskip(
        "tritonclient.http", reason="needs tritonclient, of the group server"
    )
    client = module.InferenceServerClient(people.address, concurrency=8)
    yield client
    client.close()


AGE = np.array([[1, 2, 3], [4, 5, 6.5]], np.float32)
JOB = np.array(["Sales", "é"], object)
IDS = np.array([[1, 2], [3, 4]], np.int64)


def inputs(*, binary: bool, age: Any = AGE) -> list[Any]:
    import tritonclient.http

    made = []
    for name, datatype, values in (
        ("age", "FP32", age),
        ("job", "BYTES", JOB),
        ("ids", "INT64", IDS),
    ):
        given = tritonclient.http.InferInput(name, list(values.shape), datatype)
        given.set_data_from_numpy(values, binary_data=binary)
        made.append(given)
    return made


def check(result: Any, age: Any = AGE) -> None:
    scores = result.as_numpy("score")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, age.sum(axis=1))
    assert [
        item if isinstance(item, str) else item.decode() for item in result.as_numpy("job")
    ] == [*JOB]
    np.testing.assert_array_equal(result.as_numpy("ids"), IDS * 2)


def test_tritonclient_sees_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("people")
    assert triton.is_model_ready("people", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = triton.get_model_metadata("people", "1")
    assert metadata["inputs"][2] == {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
    assert metadata["outputs"][0] == {"name": "score", "datatype": "FP32", "shape": [-1]}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_infers(triton: Any, binary: bool, compression: str | None) -> None:
    import tritonclient.http

    options: dict[str, Any] = {
        "request_id": "one",
        "request_compression_algorithm": compression,
        "response_compression_algorithm": compression,
    }
    for given in (binary, not binary):
        outputs = [
            tritonclient.http.InferRequestedOutput(name, binary_data=binary)
            for name in ("ids", "score", "job")
        ]
        result = triton.infer("people", inputs(binary=given), outputs=outputs, **options)
        check(result)
        assert [output["name"] for output in result.get_response()["outputs"]] == [
            "ids",
            "score",
            "job",
        ]
        assert result.get_response()["id"] == "one"
        check(triton.infer("people", inputs(binary=given), model_version="1", **options))


def test_tritonclient_infers_concurrently_and_each_gets_its_own(triton: Any) -> None:
    ages = [AGE + number for number in range(100)]
    asked = [triton.async_infer("people", inputs(binary=True, age=age)) for age in ages]
    for age, request in zip(ages, asked, strict=True):
        check(request.get_result(), age)


def test_tritonclient_is_told_what_is_wrong(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="feature 'age' is missing") as raised:
        triton.infer("people", inputs(binary=True)[1:])
    assert raised.value.status() == "400"
    with pytest.raises(InferenceServerException, match="this server has the model 'people'"):
        triton.infer("other", inputs(binary=True))
    with pytest.raises(InferenceServerException, match="'/v2/models/people/config'"):
        triton.get_model_config("people")


# --- requests as TensorFlow Serving documents them ---------------------------------


def curl(server: Server, path: str, body: str) -> Any:
    """Send what ``curl -d`` sends."""
    with contextlib.closing(server.connection()) as connection:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "*/*"}
        connection.request("POST", path, body, headers)
        status, document = answer(connection)
    assert status == 200, document
    return document


def test_requests_of_tensorflow_serving_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "models:half_plus_two") as server:
        path = "/v1/models/half_plus_two"
        rows = curl(server, f"{path}:predict", '{"instances": [1.0, 2.0, 5.0]}')
        assert rows == {"predictions": [2.5, 3.0, 4.5]}
        columns = curl(server, f"{path}/versions/1:predict", '{"inputs": [1.0, 2.0, 5.0]}')
        assert columns == {"outputs": [2.5, 3.0, 4.5]}
        status, document = server.get(path)
        assert (status, document["model_version_status"][0]["state"]) == (200, "AVAILABLE")
        status, document = server.get(f"{path}/metadata")
        assert (status, document["model_spec"]["name"]) == (200, "half_plus_two")


def test_named_inputs_of_tensorflow_serving_are_answered(people: Server) -> None:
    first = {"age": [1, 2, 3], "job": "foo", "ids": [1, 2]}
    second = {"age": [4, 5, 6], "job": {"b64": "YmFy"}, "ids": [3, 4]}
    rows = curl(
        people,
        "/v1/models/people:predict",
        json.dumps({"signature_name": "serving_default", "instances": [first, second]}),
    )
    assert rows == {
        "predictions": [
            {"score": 6.0, "job": "foo", "ids": [2, 4]},
            {"score": 15.0, "job": "bar", "ids": [6, 8]},
        ]
    }


# --- OpenAPI -----------------------------------------------------------------------


def test_the_server_is_what_its_description_says(people: Server) -> None:
    schemathesis = pytest.importorskip(
        "schemathesis", reason="needs schemathesis, of the group server"
    )
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode, checks

    bounded = settings(
        max_examples=20,
        deadline=None,
        derandomize=True,  # a request that nobody has thought of must not fail another's change
        suppress_health_check=[*HealthCheck],
    )
    # A schema cannot say that a shape is that of the data, or what fits the model.
    excluded = [checks.positive_data_acceptance]
    schema = schemathesis.openapi.from_url(f"{people.said['url']}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 16  # all but the description itself
    for operation in operations:
        for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:

            @bounded
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                case.call_and_validate(excluded_checks=excluded)

            ask()


# --- its life ----------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_told_to_end_it_answers_what_runs_and_leaves_nothing(
    number: signal.Signals,
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_left: Family,
) -> None:
    with asking_for_long(stage, tmp_path, monkeypatch) as (server, running):
        server.process.send_signal(number)
        until_refused(server)
        stage.let_go()
        assert answer(running) == (200, {"outputs": [-2.0]})
        assert server.process.wait(20) == 0
        assert nothing_left.gone_within(1)
        assert "Traceback" not in server.errors.read_text()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("impatient", [False, True], ids=["grace period", "second signal"])
def test_what_runs_for_too_long_is_told_that_the_server_has_ended(
    impatient: bool, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = "60" if impatient else "0.1"
    with asking_for_long(stage, tmp_path, monkeypatch, "--grace-period", grace) as asked:
        server, running = asked
        server.process.send_signal(signal.SIGTERM)
        if impatient:
            until_refused(server)
            server.process.send_signal(signal.SIGTERM)
        status, document = answer(running)
        assert (status, document) == (
            503,
            {"error": "the pool was closed before this request was answered"},
        )
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.errors.read_text()


@contextlib.contextmanager
def asking_for_long(
    stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Iterator[tuple[Server, HTTPConnection]]:
    """Have a server's worker run a request until the test lets it go."""
    monkeypatch.setenv("STAGE", str(stage.door.folder))
    with (
        serving(folder, "models:held", "--workers", "1", *arguments) as server,
        contextlib.closing(server.connection()) as running,
    ):
        running.request("POST", "/v1/models/held:predict", json.dumps({"inputs": [-1.0]}))
        anyio.run(stage.hears)
        yield server, running


def until_refused(server: Server) -> None:
    """Wait until the server listens no more."""
    host, _, port = server.address.partition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), 5).close()
        except ConnectionError:
            return


@pytest.mark.usefixtures("nothing_left")
def test_a_server_that_is_killed_takes_its_workers_along(
    tmp_path: Path, nothing_left: Family
) -> None:
    with serving(tmp_path, "models:half_plus_two") as server:
        server.process.kill()
        server.process.wait()
        assert nothing_left.gone_within(1)


@pytest.mark.usefixtures("nothing_left")
def test_it_says_what_it_serves_and_options_are_respected(tmp_path: Path) -> None:
    options = ["--name", "half", "--workers", "1", "--max-body-megabytes", "0.0001"]
    with serving(tmp_path, "models:half_plus_two", *options) as server:
        assert server.said["name"] == "half"
        assert (server.said["version"], server.said["workers"]) == ("1", 1)
        assert server.said["pid"] == server.process.pid
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.said["url"])
        path = "/v1/models/half:predict"
        assert server.post(path, {"inputs": [1]}) == (200, {"outputs": [2.5]})
        assert server.post(path, {"inputs": [1] * 50})[0] == 413
        assert server.post("/v1/models/half_plus_two:predict", {"inputs": [1]})[0] == 404
        with contextlib.closing(server.connection()) as connection:
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
        # The first is the server's own, which has told it what the outputs are.
        assert 'predictpool_requests_total{outcome="answered",pool="half"} 2.0' in metrics


@pytest.mark.usefixtures("nothing_left")
def test_what_the_model_prints_goes_to_stderr_so_that_nobody_has_to_read_stdout(
    tmp_path: Path,
) -> None:
    (tmp_path / "talkative.py").write_text(
        "from predictpool import FunctionPredictor\n"
        "print('imported', flush=True)\n"
        "def load():\n"
        "    print('loaded', flush=True)\n"
        "    def predict(x):\n"
        "        print('called' * 100_000, flush=True)\n"  # more than a pipe holds
        "        return x\n"
        "    return predict\n"
        "predictor = FunctionPredictor(load)\n"
    )
    with serving(tmp_path, "talkative:predictor", "--workers", "1") as server:
        assert server.post("/v1/models/predictor:predict", {"inputs": [1]})[0] == 200
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
        errors = server.errors.read_text()
        assert all(word in errors for word in ("imported", "loaded", "called"))


@pytest.mark.usefixtures("nothing_left")
def test_it_warms_up_with_the_features_it_is_given(tmp_path: Path) -> None:
    options = ["--features", "models:ones", "--workers", "1"]
    with serving(tmp_path, "models:picky", *options) as server:
        assert server.post("/v1/models/picky:predict", {"inputs": [2]}) == (200, {"outputs": [2.0]})
        _, metadata = server.get("/v2/models/picky")
        assert metadata["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.usefixtures("nothing_left")
def test_requests_that_take_too_long_or_are_too_many_are_refused(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--timeout", "1", "--max-waiting", "0"]
    with asking_for_long(stage, tmp_path, monkeypatch, *options) as (server, running):
        assert server.post("/v1/models/held:predict", {"inputs": [1]})[0] == 429
        assert answer(running)[0] == 504
        stage.let_go()


@pytest.mark.parametrize(
    ("arguments", "said", "exit_code"),
    [
        (["models"], "'models' is not MODULE:PREDICTOR", 2),
        (["nothing:here"], "there is no module 'nothing'", 2),
        (["models:peple"], "models (models.py) has no 'peple': did you mean 'people'?", 2),
        (["models:number"], "models:number is of the type int, not a predictor", 2),
        (["models:listing"], "output 'output' is a list, which HTTP clients cannot be sent", 1),
        (
            ["models:dated"],
            "the array of features has the dtype datetime64[s], expected one of bool",
            1,
        ),
        (["models:broken"], "load() returned 1, expected a function", 1),
        (["models:picky"], "Here, name them with --features MODULE:FEATURES", 1),
        (["models:people", "--watch", "1"], "watch", 1),
        (["models:people", "--watch", "0"], "watch is 0, expected more than 0 seconds", 2),
        (["models:people", "--name", "a/b"], "--name is 'a/b', which is part of addresses", 2),
        (["models:people", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port ", 2),
        (["models:people", "--features", "models:number"], "--features models:number: ", 2),
    ],
)
@pytest.mark.usefixtures("nothing_left")
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], said: str, exit_code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        **command(tmp_path, *arguments, "--port", "0"), capture_output=True, timeout=50, check=False
    )
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("predictpool: ")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert done.returncode == exit_code


@pytest.mark.parametrize("missing", ["httptools", "orjson", "prometheus_client", "uvicorn"])
def test_without_the_extra_there_is_one_line_that_says_what_to_install(
    missing: str, tmp_path: Path
) -> None:
    how = command(tmp_path, "models:people")
    how["args"][3] = f"import sys; sys.modules[{missing!r}] = None; {how['args'][3]}"
    done = subprocess.run(**how, capture_output=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f'predictpool: serve needs {missing}: pip install "predictpool[serve]"\n'
    )


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            **command(tmp_path, "models:people", "--port", str(port)),
            capture_output=True,
            timeout=50,
            check=False,
        )
    assert done.stderr == (
        f"predictpool: cannot listen on 127.0.0.1 port {port} (Address already in use): name "
        "another --host or --port; --port 0 takes one that is free\n"
    )
    assert done.returncode == 2


@pytest.mark.usefixtures("nothing_left")
def test_a_server_told_to_end_while_its_model_loads_ends(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE", str(stage.door.folder))
    (tmp_path / "slow.py").write_text(
        "import models\n"
        "from predictpool import FunctionPredictor\n"
        "def load():\n"
        "    return models.load_held()([-1.0])\n"
        "predictor = FunctionPredictor(load)\n"
    )
    with subprocess.Popen(
        **command(tmp_path, "slow:predictor", "--port", "0"), stderr=subprocess.PIPE
    ) as server:
        anyio.run(stage.hears)
        server.send_signal(signal.SIGTERM)
        assert server.communicate(timeout=20)[1] == ""
        assert server.returncode == 0


@pytest.mark.usefixtures("nothing_left")
def test_a_second_signal_does_not_wait_while_the_first_request_runs(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE", str(stage.door.folder))
    options = ["--workers", "1", "--grace-period", "30", "--port", "0"]
    with subprocess.Popen(
        **command(tmp_path, "models:held", "--features", "models:minus_one", *options),
        stderr=subprocess.PIPE,
    ) as server:
        anyio.run(stage.hears)  # the warm-up
        stage.let_go()
        anyio.run(stage.hears)  # the server's own request
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGINT)
        assert "Traceback" not in server.communicate(timeout=20)[1]
        assert server.returncode == 0
