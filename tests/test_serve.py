"""The application of ``predictpool serve``: what it answers, and that nothing breaks it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictpool import FunctionPredictor, PredictorPool
from tests.conftest import LOOPS
from tests.pools import POOL_TEST, calling, doubling, held, until, until_waiting
from tests.stage import Stage

for needed in ("httpx", "orjson", "prometheus_client"):
    pytest.importorskip(needed, reason=f"needs {needed}, of the groups server and hooks")

import httpx  # noqa: E402 - it may be missing, as what follows
from prometheus_client import CollectorRegistry  # noqa: E402

from predictpool.prometheus import PrometheusHooks  # noqa: E402
from predictpool.serve._app import Application  # noqa: E402
from predictpool.serve._http import Refusal, body_of  # noqa: E402
from predictpool.serve._model import Model  # noqa: E402
from predictpool.serve._open_inference import read  # noqa: E402
from predictpool.serve._tensors import described, named_arrays  # noqa: E402

pytestmark = POOL_TEST

LIMIT = 100_000
INFER = "/v2/models/people/infer"
PREDICT = "/v1/models/people:predict"


@pytest.fixture
def anyio_backend() -> Any:
    """Run on the loop that the command chooses."""
    return LOOPS["uvloop"]


SIGNATURE = {"age": (np.float32, (3,)), "job": (str, (), "none"), "ids": (np.int64, (None,))}


def load_people() -> Callable[[Any], Any]:
    def predict(features: Any) -> Any:
        return {
            "score": features["age"].sum(axis=1),
            "job": features["job"],
            "ids": features["ids"] * 2,
        }

    return predict


def people() -> FunctionPredictor[Any]:
    return FunctionPredictor(load_people, row_wise=True, signature=SIGNATURE)


def application(
    pool: PredictorPool[Any], outputs: Any = None, metrics: CollectorRegistry | None = None
) -> Application:
    model = Model("people", pool, outputs)
    return Application(model, metrics or CollectorRegistry(), max_body_bytes=LIMIT)


def client_of(app: Application) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


@asynccontextmanager
async def serving(predictor: FunctionPredictor[Any], **options: Any) -> AsyncIterator[Any]:
    """A client of an application with a pool of one worker."""
    metrics = CollectorRegistry()
    hooks = [PrometheusHooks(metrics)]
    async with (
        PredictorPool(predictor, workers=1, name="people", hooks=hooks, **options) as pool,
        client_of(application(pool, metrics=metrics)) as client,
    ):
        yield client


def refuses(reply: Any, status: int = 400) -> str:
    """Return the reason of a refusal."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    document = reply.json()
    assert [*document] == ["error"]
    assert "Traceback" not in document["error"]
    return str(document["error"])


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


AGE = tensor("age", "FP32", [2, 3], [1, 2, 3, 4, 5, 6.5])
JOB = tensor("job", "BYTES", [2], ["Sales", "é"])
IDS = tensor("ids", "INT64", [2, 2], [[1, 2], [3, 4]])
SCORES = tensor("score", "FP32", [2], [6.0, 15.5])
THREE = {"inputs": [AGE, JOB, IDS]}


# --- the Open Inference Protocol ---------------------------------------------------


async def test_json_is_answered_in_json_with_the_rows_in_their_order() -> None:
    async with serving(people()) as client:
        reply = await client.post(INFER, json={"id": "7", **THREE})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "model_name": "people",
        "model_version": "1",
        "id": "7",
        "outputs": [SCORES, JOB, tensor("ids", "INT64", [2, 2], [2, 4, 6, 8])],
    }


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", np.bool_),
        ("UINT8", np.uint8),
        ("UINT16", np.uint16),
        ("UINT32", np.uint32),
        ("UINT64", np.uint64),
        ("INT8", np.int8),
        ("INT16", np.int16),
        ("INT32", np.int32),
        ("INT64", np.int64),
        ("FP16", np.float16),
        ("FP32", np.float32),
        ("FP64", np.float64),
    ],
)
async def test_each_datatype_of_numbers_goes_there_and_back_in_json_and_in_bytes(
    datatype: str, dtype: Any
) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    limits = [] if dtype is np.bool_ else [limits_of(dtype)]
    for array in [values, *limits]:
        async with serving(calling(lambda features: features)) as client:
            by_json = await client.post(
                INFER, json={"inputs": [tensor("x", datatype, [*array.shape], array.tolist())]}
            )
            assert by_json.status_code == 200, by_json.text
            (output,) = by_json.json()["outputs"]
            assert output == tensor("x", datatype, [*array.shape], array.ravel().tolist())
            body, headers = with_bytes([("x", datatype, array.shape, array.tobytes())])
            reply = await client.post(INFER, content=body, headers=headers)
            assert bytes_of(reply)["x"] == array.tobytes()


def limits_of(dtype: Any) -> Any:
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return np.array([limits.min, limits.max], dtype)


def with_bytes(
    inputs: list[tuple[str, str, Any, bytes]], **document: Any
) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary inputs, which asks for binary outputs, and its headers."""
    document["inputs"] = [
        {
            "name": name,
            "datatype": datatype,
            "shape": [*shape],
            "parameters": {"binary_data_size": len(data)},
        }
        for name, datatype, shape, data in inputs
    ]
    document.setdefault("parameters", {"binary_data_output": True})
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return head + b"".join(data for *_, data in inputs), headers


def bytes_of(reply: Any) -> dict[str, bytes]:
    """Return the binary outputs of a reply."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/octet-stream"
    at = int(reply.headers["inference-header-content-length"])
    found = {}
    for output in json.loads(reply.content[:at])["outputs"]:
        if "parameters" in output:
            assert "data" not in output
            end = at + output["parameters"]["binary_data_size"]
            found[output["name"]] = reply.content[at:end]
            at = end
    assert at == len(reply.content)
    return found


async def test_nan_and_infinite_numbers_go_there_and_back_in_json() -> None:
    body = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [3], "data": %s}]}'
    async with serving(calling(lambda features: features)) as client:
        reply = await client.post(INFER, content=body % b"[NaN, Infinity, -Infinity]")
        assert b'"data":[NaN,Infinity,-Infinity]' in reply.content
        reply = await client.post(PREDICT, content=b'{"inputs": {"x": [NaN, 1]}}')
        assert reply.content == b'{"outputs":[NaN,1.0]}'


async def test_an_id_comes_back_as_it_is_even_if_it_is_no_text() -> None:
    async with serving(people()) as client:
        for name in ("\ud800", "é", ""):
            reply = await client.post(INFER, content=json.dumps({"id": name, **THREE}))
            assert reply.json()["id"] == name


async def test_text_goes_there_and_back_in_bytes_whatever_they_are() -> None:
    text = b"\x02\x00\x00\x00\xff\x00" + b"\x00\x00\x00\x00"
    body, headers = with_bytes([("x", "BYTES", [2], text)])
    async with serving(calling(lambda features: features)) as client:
        assert bytes_of(await client.post(INFER, content=body, headers=headers)) == {"x": text}
        body, headers = with_bytes([("x", "BYTES", [2], text)], parameters={})
        reason = refuses(await client.post(INFER, content=body, headers=headers))
    assert reason == (
        "output 'x' has bytes that are no UTF-8, which JSON does not have: ask for it with "
        "binary_data"
    )


async def test_a_client_gets_the_outputs_that_it_names_each_in_its_form() -> None:
    outputs = [{"name": "ids", "parameters": {"binary_data": True}}, {"name": "score"}]
    async with serving(people()) as client:
        reply = await client.post(INFER, json={**THREE, "outputs": outputs})
        assert bytes_of(reply) == {"ids": np.array([2, 4, 6, 8]).tobytes()}
        length = int(reply.headers["inference-header-content-length"])
        assert json.loads(reply.content[:length])["outputs"][1] == SCORES
        # What a request says of all outputs is for those of which it says nothing.
        every = {"binary_data_output": True}
        reply = await client.post(INFER, json={**THREE, "parameters": every, "outputs": outputs})
        assert [*bytes_of(reply)] == ["ids", "score"]
        unknown = await client.post(INFER, json={**THREE, "outputs": [{"name": "scores"}]})
    assert refuses(unknown) == "output 'scores' is unknown: this model has score, job, ids"


async def test_an_array_without_a_name_is_called_input_and_output() -> None:
    numbers = tensor("input", "FP64", [2], [1.5, 2.0])
    for predictor in (doubling(), doubling(signature=(np.float64, ()))):
        async with serving(predictor) as client:
            reply = await client.post(INFER, json={"inputs": [numbers]})
            (output,) = reply.json()["outputs"]
            assert output == tensor("output", "FP64", [2], [3.0, 4.0])
    async with serving(doubling(signature=(np.float64, ()))) as client:
        reply = await client.post(INFER, json={"inputs": [{**numbers, "name": "x"}]})
    assert refuses(reply) == ("the inputs are 'x', expected one, 'input': float64 rows of shape ()")


async def test_metadata_say_what_the_model_takes_and_returns() -> None:
    async with PredictorPool(people(), workers=1) as pool:
        example = {"age": [[1, 2, 3]], "ids": [[1]]}
        outputs = described(named_arrays(await pool.predict(example)), fixed=False)
        async with client_of(application(pool, outputs)) as client:
            server = (await client.get("/v2")).json()
            model = (await client.get("/v2/models/people")).json()
            assert (await client.get("/v2/models/people/versions/1")).json() == model
            signature = (await client.get("/v1/models/people/metadata")).json()
    assert server["name"] == "predictpool"
    assert server["extensions"] == ["binary_tensor_data"]
    assert model == {
        "name": "people",
        "versions": ["1"],
        "platform": "predictpool",
        "inputs": [
            {"name": "age", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "job", "datatype": "BYTES", "shape": [-1]},
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "job", "datatype": "BYTES", "shape": [-1]},
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        ],
    }
    (of_model,) = signature["metadata"]["signature_def"]["signature_def"].values()
    assert of_model["inputs"]["age"] == {
        "name": "age",
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
            "unknown_rank": False,
        },
    }
    assert of_model["outputs"]["job"]["dtype"] == "DT_STRING"
    assert of_model["inputs"]["ids"]["dtype"] == "DT_INT64"


async def test_metadata_say_that_a_signature_is_not_known() -> None:
    async with client_of(application(PredictorPool(doubling()))) as client:
        model = (await client.get("/v2/models/people")).json()
    assert (model["inputs"], model["outputs"]) == ([], [])
    assert model["parameters"]["signature"].startswith("unknown: ")


async def test_a_server_without_a_worker_is_alive_and_not_ready() -> None:
    pool = PredictorPool(people())
    async with client_of(application(pool)) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/people/ready"):
            reply = await client.get(path)
            assert (reply.status_code, reply.json()["ready"]) == (503, False)
        (status,) = (await client.get("/v1/models/people")).json()["model_version_status"]
        assert status["state"] == "LOADING"
        reply = await client.post(INFER, json=THREE)
        assert reply.headers["retry-after"] == "1"
        assert "the pool is not opened" in refuses(reply, 503)


async def test_a_server_with_a_worker_is_ready() -> None:
    async with serving(people()) as client:
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        reply = await client.get("/v2/models/people/ready")
        assert reply.json() == {"name": "people", "ready": True}
        reply = await client.get("/v1/models/people/versions/1")
        assert reply.json() == {
            "model_version_status": [
                {
                    "version": "1",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        }


# --- TensorFlow Serving ------------------------------------------------------------


async def test_rows_are_answered_by_rows_and_columns_by_columns() -> None:
    row = {"age": [1, 2, 3], "job": "Sales", "ids": [7]}
    other = {"age": [4, 5, 6.5], "job": "é", "ids": [8]}
    async with serving(people()) as client:
        rows = await client.post(PREDICT, json={"instances": [row, other]})
        columns = {name: [row[name], other[name]] for name in row}
        by_name = await client.post(
            "/v1/models/people/versions/1:predict",
            json={"signature_name": "serving_default", "inputs": columns},
        )
    assert rows.json() == {
        "predictions": [
            {"score": 6.0, "job": "Sales", "ids": [14]},
            {"score": 15.5, "job": "é", "ids": [16]},
        ]
    }
    assert by_name.json() == {
        "outputs": {"score": [6.0, 15.5], "job": ["Sales", "é"], "ids": [[14], [16]]}
    }


@pytest.mark.parametrize("signature", [None, (np.float64, ()), {"x": (np.float64, ())}])
async def test_a_single_input_or_output_needs_no_name(signature: Any) -> None:
    def double(x: Any) -> Any:
        return {"y": x["x"] * 2} if isinstance(x, dict) else x * 2

    async with serving(calling(double, signature=signature)) as client:
        rows = await client.post(PREDICT, json={"instances": [1.0, 2.0, 5.0]})
        columns = await client.post(PREDICT, json={"inputs": [1.0, 2.0, 5.0]})
    assert rows.json() == {"predictions": [2.0, 4.0, 10.0]}
    assert columns.json() == {"outputs": [2.0, 4.0, 10.0]}


async def test_bytes_are_base64_and_so_are_outputs_that_ask_for_it_or_are_no_text() -> None:
    def upper(images: Any) -> Any:
        texts = np.array([item.upper() for item in images], object)
        return {"text": texts, "image_bytes": texts}

    given = [{"b64": base64.b64encode(item).decode()} for item in (b"abc", b"\xff")]
    async with serving(calling(upper, signature=(str, ()))) as client:
        reply = await client.post(PREDICT, json={"instances": given})
    abc, other = {"b64": "QUJD"}, {"b64": "/w=="}
    assert reply.json() == {
        "predictions": [
            {"text": "ABC", "image_bytes": abc},
            {"text": other, "image_bytes": other},
        ]
    }


async def test_rows_cannot_be_told_apart_in_outputs_that_do_not_have_them() -> None:
    async with serving(calling(lambda _: np.zeros((3, 2)))) as client:
        reply = await client.post(PREDICT, json={"instances": [1, 2]})
        assert (await client.post(PREDICT, json={"inputs": [1, 2]})).json() == {
            "outputs": [[0.0, 0.0]] * 3
        }
    assert refuses(reply) == (
        "output 'output' has the shape (3, 2) for 2 instances: ask with inputs (columns) instead"
    )


# --- malformed requests ------------------------------------------------------------


def infer(*inputs: Any, **document: Any) -> dict[str, Any]:
    return {"inputs": [*inputs], **document}


MALFORMED: list[tuple[Any, str]] = [
    ("", "the body is no JSON: Expecting value"),
    ("{", "the body is no JSON: "),
    (b"\xff\xfe\xff", "the body is no JSON: "),
    ("[" * 100_000, "the body is no JSON: "),
    ("9" * 5000, "the body is no JSON: "),
    ([], "the body is a list, expected a JSON object"),
    (None, "the body is null, expected a JSON object"),
    ({}, "inputs is null, expected a list"),
    ({"inputs": {}}, "inputs is an object, expected a list"),
    (infer(), "inputs is empty"),
    (infer(1), "an element of inputs is a number, expected an object"),
    (infer({}), "the name of an input is None, expected text"),
    (infer({**AGE, "name": ""}), "the name of an input is ''"),
    (infer(AGE, AGE), "input 'age' is there twice"),
    (infer({**AGE, "datatype": "BF16"}), "the datatype of input 'age' is 'BF16', expected BOOL"),
    (infer({**AGE, "datatype": ["FP32"]}), "the datatype of input 'age' is ['FP32']"),
    (infer({**AGE, "shape": None}), "the shape of input 'age' is None"),
    (infer({**AGE, "shape": [2, -3]}), "the shape of input 'age' is [2, -3]"),
    (infer({**AGE, "shape": [2.0, 3]}), "the shape of input 'age' is [2.0, 3]"),
    (infer({**AGE, "shape": [True, 6]}), "the shape of input 'age' is [True, 6]"),
    (infer({**AGE, "shape": [1] * 33}), "[1, 1, 1, 1, 1, 1, ...], expected a list of at most 32"),
    # NaN keeps orjson, which makes a float of such a number, from reading it.
    (infer({**AGE, "shape": [2**64, 0]}, nan=np.nan), "the shape of input 'age' is [1844674407"),
    (infer({**AGE, "shape": [2**64, 0]}, nan=np.nan), "whole numbers of 64 bits"),
    (infer({**AGE, "shape": [2, 2]}), "data of input 'age' has 6 values, expected those of shape"),
    (infer({**AGE, "shape": [2**63, 0], "data": []}), "the shape of input 'age' is [9223"),
    (infer({**AGE, "data": None}), "data of input 'age' is null, expected a list"),
    (infer({**AGE, "data": [[1, 2], [3, 4, 5, 6]]}), "does not have the shape [2, 3]"),
    (infer({**AGE, "data": [[1, 2, 3], 4, 5, 6]}), "does not have the shape [2, 3]"),
    (infer({**AGE, "data": [1, 2, 3, 4, 5, "6"]}), "feature 'age' has"),
    (infer({**AGE, "data": [1, 2, 3, 4, 5, None]}), "feature 'age' has"),
    (infer({**AGE, "data": [1, 2, 3, 4, 5, [6]]}), "feature 'age'"),
    (infer({**AGE, "data": [1, 2, 3, 4, 5, 1e300]}), "feature 'age' has the value 1e+300"),
    (infer({**IDS, "data": [1, 2, 3, 4.5]}), "feature 'ids' has"),
    (infer(tensor("ids", "INT8", [1], [128])), "feature 'ids' has the value 128 in element 0"),
    (infer(tensor("ids", "BOOL", [1], [2])), "feature 'ids' has"),
    (infer(tensor("job", "BYTES", [1], [2])), "feature 'job' has"),
    (infer(tensor("job", "BYTES", [1], ["\ud800"])), "feature 'job' has the value"),
    (infer(AGE, parameters=[]), "parameters of the request is a list"),
    (infer(AGE, parameters={"binary_data_output": 1}), "binary_data_output is a number"),
    (infer({**AGE, "parameters": 1}), "parameters of input 'age' is a number"),
    (infer({**AGE, "parameters": {"binary_data_size": 24}}), "binary_data_size of input 'age'"),
    (infer({**AGE, "parameters": {"binary_data_size": 0}}), "has data and binary_data_size"),
    (infer(AGE, id=5), "id is a number, expected text"),
    (infer(AGE, outputs={}), "outputs is an object, expected a list"),
    (infer(AGE, outputs=[None]), "an element of outputs is null"),
    (infer(AGE, outputs=[{"name": 1}]), "the name of an output is 1"),
    (infer(AGE, outputs=[{"name": "a", "parameters": {"binary_data": "yes"}}]), "binary_data is"),
    (
        infer(AGE, outputs=[{"name": "a", "parameters": {"classification": 3}}]),
        "output 'a' asks for a classification",
    ),
]


@pytest.mark.parametrize(("body", "reason"), MALFORMED)
async def test_a_malformed_inference_request_is_told_why(body: Any, reason: str) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    async with client_of(application(PredictorPool(people()))) as client:
        assert reason in refuses(await client.post(INFER, content=content))


MALFORMED_BYTES = [
    (("x", "FP32", [2], b"1234"), {}, "input 'x' has 4 bytes, expected 8: FP32 of shape [2]"),
    (("x", "BYTES", [1], b"\x02\x00\x00"), {}, "input 'x' ends within element 0 of its text"),
    (("x", "BYTES", [1], b"\x02\x00\x00\x00a"), {}, "input 'x' ends within element 0"),
    (("x", "BYTES", [2], b"\x01\x00\x00\x00a"), {}, "has 1 elements, its shape says 2"),
    (("x", "INT8", [1], b"a"), {"Inference-Header-Content-Length": "0"}, "the body is no JSON"),
    (("x", "INT8", [1], b"a"), {"Inference-Header-Content-Length": "-1"}, "is '-1', expected the"),
    (("x", "INT8", [1], b"a"), {"Inference-Header-Content-Length": "9999"}, "is '9999', expected"),
    (
        ("x", "INT8", [1], b"a"),
        {"Inference-Header-Content-Length": "9" * 30},
        "expected the length",
    ),
]


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (INFER, '{"inputs": [{"name": %s}]}', "the name of an input is [[[[[[[...]]]]]]]"),
        (INFER, '{"inputs": [{"name": "x", "datatype": %s}]}', "datatype of input 'x' is [[["),
        (
            INFER,
            '{"inputs": [{"name": "x", "datatype": "INT8", "shape": %s}]}',
            "the shape of input 'x' is [[[",
        ),
        (
            INFER,
            """{"inputs": [{"name": "x", "datatype": "INT8", "shape": [],
            "parameters": {"binary_data_size": %s}}]}""",
            "binary_data_size of input 'x' is [[[",
        ),
        (PREDICT, '{"signature_name": %s, "instances": [1]}', "signature_name is [[["),
    ],
)
async def test_what_a_client_sent_is_quoted_briefly_however_long_or_deep_it_is(
    path: str, body: str, reason: str
) -> None:
    text, many = json.dumps("x" * LIMIT)[:-300] + '"', json.dumps({str(i): i for i in range(5000)})
    async with client_of(application(PredictorPool(people()))) as client:
        for sent in (DEEP, text, many, f"[{many}]"):
            said = refuses(await client.post(path, content=body % sent))
            assert len(said) < 400
            if sent is DEEP:
                assert reason in said


async def test_names_are_listed_up_to_the_twentieth() -> None:
    many = {f"n{i}": [1.0] for i in range(1000)}
    twenty = ", ".join(f"'n{i}'" for i in range(20))
    async with client_of(application(PredictorPool(people()))) as client:
        for rows in ([many, {"x": 1}], [{"x": 1}, many]):
            said = refuses(await client.post(PREDICT, json={"instances": rows}))
            assert f"{twenty}, ..." in said
            assert "n20" not in said


def test_a_shape_of_any_length_is_not_multiplied() -> None:
    # The product of these would take minutes, and stop the server.
    shape = f"[{'9,' * 1_000_000}9]"
    body = f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": {shape}, "data": []}}]}}'
    with pytest.raises(Refusal, match="expected a list of at most 32 whole numbers") as raised:
        read(body.encode())
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(("sent", "more", "reason"), MALFORMED_BYTES)
async def test_malformed_bytes_are_told_why(sent: Any, more: Any, reason: str) -> None:
    body, headers = with_bytes([sent])
    async with client_of(application(PredictorPool(people()))) as client:
        reply = await client.post(INFER, content=body, headers={**headers, **more})
        assert reason in refuses(reply)


@pytest.mark.parametrize("predictor", [people, doubling], ids=["signature", "any features"])
async def test_a_name_that_caches_would_keep_for_ever_has_256_characters_at_most(
    predictor: Callable[[], FunctionPredictor[Any]],
) -> None:
    name = "x" * 257
    async with client_of(application(PredictorPool(predictor()))) as client:
        for path, document in (
            (INFER, infer({**AGE, "name": name})),
            (INFER, infer(AGE, outputs=[{"name": name}])),
            (PREDICT, {"inputs": {name: [1.0]}}),
            (PREDICT, {"instances": [{name: 1.0}]}),
        ):
            reason = refuses(await client.post(path, content=json.dumps(document)))
            assert "put is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', expected text of at most 256" in reason
    async with client_of(application(PredictorPool(doubling()))) as client:
        reply = await client.post(PREDICT, json={"inputs": {"input": {name: [1.0]}}})
        assert "expected text of at most 256 characters" in refuses(reply)


async def test_a_name_of_256_characters_is_served() -> None:
    name = "x" * 256
    async with serving(calling(lambda features: features)) as client:
        reply = await client.post(INFER, json=infer({**AGE, "name": name}))
        assert reply.json()["outputs"][0]["name"] == name
        reply = await client.post(PREDICT, json={"instances": [{name: 1.0}]})
        assert reply.json() == {"predictions": [1.0]}


async def test_bytes_behind_the_last_input_are_refused() -> None:
    body, headers = with_bytes([("x", "INT8", [1], b"a")])
    async with client_of(application(PredictorPool(people()))) as client:
        reply = await client.post(INFER, content=body + b"bc", headers=headers)
    assert refuses(reply) == "the body has 2 bytes behind its last input"


async def test_a_boolean_of_any_byte_is_true_or_false() -> None:
    body, headers = with_bytes([("x", "BOOL", [3], b"\x00\x01\x07")])
    async with serving(calling(lambda features: {"n": features["x"].astype(int)})) as client:
        reply = await client.post(INFER, content=body, headers=headers)
    assert bytes_of(reply)["n"] == np.array([0, 1, 1]).tobytes()


MALFORMED_PREDICT = [
    ("{", "the body is no JSON: "),
    ({"b64": "QUJD"}, "the body is bytes, expected a JSON object"),
    ({}, "the body needs either instances"),
    ({"instances": [1], "inputs": [1]}, "the body needs either instances"),
    ({"instances": []}, "instances is empty, expected a list of rows"),
    ({"instances": 1}, "instances is a number, expected a list of rows"),
    ({"instances": {"b64": "QUJD"}}, "instances is bytes"),
    ({"instances": [{}]}, "the inputs have no name"),
    ({"inputs": {}}, "the inputs have no name"),
    ({"instances": [{"age": 1}, {"job": 1}]}, "instance 1 has 'job', expected what the first has"),
    ({"instances": [{"age": 1}, 2]}, "instance 1 has a number, expected"),
    ({"instances": [1], "signature_name": "other"}, "signature_name is 'other', expected"),
    ({"instances": [{"b64": 1}]}, "b64 is a number, expected text in base64"),
    ({"instances": [{"b64": "QUJ"}]}, "b64 is 'QUJ', which is no base64"),
    ({"instances": [{"b64": "é"}]}, "b64 is 'é', which is no base64"),
]


@pytest.mark.parametrize(("body", "reason"), MALFORMED_PREDICT)
async def test_a_malformed_predict_request_is_told_why(body: Any, reason: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    async with client_of(application(PredictorPool(people()))) as client:
        assert reason in refuses(await client.post(PREDICT, content=content))


async def test_features_that_do_not_fit_are_told_why() -> None:
    async with serving(people()) as client:
        reply = await client.post(INFER, json={"inputs": [AGE]})
        assert refuses(reply).startswith("feature 'ids' is missing: given [age]")
        reply = await client.post(INFER, json={"inputs": [{**AGE, "name": "aged"}, IDS]})
        assert "did you mean it by 'aged'?" in refuses(reply)
        reply = await client.post(PREDICT, json={"instances": [{"age": "old", "ids": [1]}]})
        assert refuses(reply).startswith("feature 'age' has")
        reply = await client.post(PREDICT, json={"instances": [1, 2]})
        assert refuses(reply).startswith("features are a list, expected a mapping")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["age", "job", "ids", "input", "x"])
NUMBERS = st.integers() | st.floats() | st.booleans()
ROWS = st.lists(NUMBERS | st.text(), max_size=6) | st.lists(st.lists(NUMBERS, max_size=3))
NEARLY_INPUT = st.fixed_dictionaries(
    {
        "name": NAMES | ANY_JSON,
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "BOOL", "UINT8"]) | ANY_JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | ANY_JSON,
        "data": ROWS | ANY_JSON,
    },
    optional={"parameters": ANY_JSON},
)
NEARLY_INFER = st.fixed_dictionaries(
    {"inputs": st.lists(NEARLY_INPUT, min_size=1, max_size=3) | ANY_JSON},
    optional={
        "id": st.text() | ANY_JSON,
        "parameters": st.fixed_dictionaries({"binary_data_output": st.booleans()}) | ANY_JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES | ANY_JSON})) | ANY_JSON,
    },
)
NEARLY_PREDICT = st.fixed_dictionaries(
    {},
    optional={
        "instances": st.lists(st.dictionaries(NAMES, ROWS | ANY_JSON), max_size=3) | ANY_JSON,
        "inputs": st.dictionaries(NAMES, ROWS | ANY_JSON) | ANY_JSON,
        "signature_name": ANY_JSON,
    },
)


@pytest.mark.parametrize("predictor", [people, doubling], ids=["signature", "any features"])
@pytest.mark.timeout(60)
def test_any_json_is_answered_or_told_why(
    predictor: Callable[[], FunctionPredictor[Any]],
) -> None:
    with (
        anyio.from_thread.start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(serving(predictor())) as client,
    ):

        @settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
        @given(
            st.tuples(st.just(INFER), NEARLY_INFER | ANY_JSON)
            | st.tuples(st.just(PREDICT), NEARLY_PREDICT | ANY_JSON)
        )
        def ask(request: tuple[str, Any]) -> None:
            path, document = request

            async def post() -> Any:
                return await client.post(path, content=json.dumps(document))

            reply = portal.call(post)
            if reply.status_code == 500:  # `doubling` doubles whatever it gets
                assert predictor is doubling
                assert refuses(reply, 500).startswith(("the prediction failed: ", "output "))
            elif reply.status_code != 200:
                refuses(reply)

        ask()


# --- bodies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_read_within_the_limit(encoding: str, compress: Any) -> None:
    headers = {"Content-Encoding": encoding}
    async with serving(people()) as client:
        body = compress(json.dumps(THREE).encode())
        assert (await client.post(INFER, content=body, headers=headers)).status_code == 200
        for broken, reason in (
            (body[:-1], "is cut off"),
            (body + b"more", "goes on behind its end"),
            (b"none", f"the body is not compressed by {encoding}"),
        ):
            reply = await client.post(INFER, content=broken, headers=headers)
            assert reason in refuses(reply)
        bomb = compress(b" " * (LIMIT + 1))
        refuses(await client.post(INFER, content=bomb, headers=headers), 413)


async def test_an_unknown_encoding_is_refused() -> None:
    async with client_of(application(PredictorPool(people()))) as client:
        reply = await client.post(INFER, content=b"...", headers={"Content-Encoding": "br"})
    assert refuses(reply, 415) == "Content-Encoding is 'br', expected gzip, deflate or none"


async def test_a_body_beyond_the_limit_is_refused_whether_it_says_so_or_not() -> None:
    said, in_pieces = b" " * (LIMIT + 1), 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal in_pieces
        for _ in range(100):
            in_pieces += 1
            yield b" " * (LIMIT // 4)

    async with serving(people()) as client:
        for content in (said, pieces()):
            reason = refuses(await client.post(INFER, content=content), 413)
            assert reason.startswith("the body is larger than 100,000 bytes")
        assert in_pieces == 5  # and not read to its end
        body = json.dumps(THREE).ljust(LIMIT).encode()
        assert (await client.post(INFER, content=body)).status_code == 200

        async def whole() -> AsyncIterator[bytes]:
            yield body[:10]
            yield body[10:]

        assert (await client.post(INFER, content=whole())).status_code == 200


async def test_a_body_that_says_it_is_beyond_the_limit_is_not_read() -> None:
    said = {**SCOPE, "headers": [(b"content-length", b"%d" % (LIMIT + 1))]}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await application(PredictorPool(people()))(said, receiving(), send)
    assert sent[0]["status"] == 413


@pytest.mark.parametrize(
    "begin", [[], [{"type": "http.request", "body": b"{", "more_body": True}]], ids=["none", "half"]
)
async def test_a_body_that_does_not_come_is_not_waited_for(
    begin: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictpool.serve._http.BODY_SECONDS", 0)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    receive = receiving(*begin, gone=asyncio.Event())
    with anyio.fail_after(15):
        await application(PredictorPool(people()))(SCOPE, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"].startswith("the body has not come within 0 seconds")


async def test_what_decompresses_to_too_much_is_not_decompressed() -> None:
    bomb = gzip.compress(b" " * 100 * LIMIT)
    headers = {b"content-encoding": b"gzip"}
    receive = receiving({"type": "http.request", "body": bomb})
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as raised:
            await body_of(headers, receive, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    finally:
        tracemalloc.stop()
    assert raised.value.status == 413


async def test_paths_and_methods_that_are_not_there_are_told_so() -> None:
    async with client_of(application(PredictorPool(people()))) as client:
        for path in (
            "/",
            "/v2/models/other",
            "/v2/models/people/versions/2/infer",
            "/v1/models/people/versions/2:predict",
            "/v1/models/people:classify",
        ):
            reason = refuses(await client.get(path), 404)
            assert reason == (
                f"there is nothing at {path!r}: this server has the model 'people', version 1, "
                "and describes itself at '/openapi.json'"
            )
        reply = await client.get(INFER)
        assert refuses(reply, 405) == f"GET is not for {INFER!r}, expected POST"
        assert reply.headers["allow"] == "POST"
        reply = await client.delete("/v2")
        assert reply.headers["allow"] == "GET, HEAD"


# --- what goes wrong behind it -----------------------------------------------------

ONE = {"inputs": [tensor("input", "FP64", [1], [1.0])]}


class Strange(Exception):
    """Nothing that the application knows."""


def raising(error: Exception) -> FunctionPredictor[Any]:
    def fail(_: Any) -> Any:
        raise error

    return calling(fail)


async def test_a_model_that_fails_tells_its_message_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for predictor in (
        raising(ValueError("no\nsuch day")),
        raising(json.JSONDecodeError("a", "", 0)),
    ):
        async with serving(predictor) as client:
            reason = refuses(await client.post(INFER, json=ONE), 500)
        assert reason.startswith("the prediction failed: ")
        assert "\n" not in reason
    # Who runs the server sees it.
    assert "ValueError: no\nsuch day" in caplog.text
    assert "in fail" in caplog.text


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([1, 2], "output 'output' is a list, which HTTP clients cannot be sent"),
        ({"a": 1}, "output 'a' is a int, which HTTP clients cannot be sent"),
        (np.zeros(1, complex), "output 'output' has the dtype complex128, expected one of bool"),
        (np.array([{1}], object), "output 'output' has objects that are no text"),
    ],
)
async def test_outputs_that_cannot_be_sent_are_told_so(outputs: Any, reason: str) -> None:
    async with serving(calling(lambda _: outputs)) as client:
        assert reason in refuses(await client.post(INFER, json=ONE), 500)
        assert reason in refuses(await client.post(PREDICT, json={"inputs": [1]}), 500)


async def test_a_mistake_of_the_server_is_json_as_well_and_its_log_has_the_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise Strange("secret")

    monkeypatch.setattr("predictpool.serve._open_inference.read", fail)
    async with client_of(application(PredictorPool(people()))) as client:
        reason = refuses(await client.post(INFER, json=ONE), 500)
    assert reason == "the server failed: its log says why"
    assert f"POST {INFER} failed" in caplog.text
    assert "Strange: secret" in caplog.text


async def test_one_request_too_many_is_told_to_come_back(stage: Stage) -> None:
    async with (
        PredictorPool(held(stage), workers=1, max_waiting=1) as pool,
        client_of(application(pool)) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(post_one, client)
        await stage.hears()
        group.start_soon(post_one, client)
        await until_waiting(pool, 1)
        reply = await client.post(INFER, json=ONE)
        assert reply.headers["retry-after"] == "1"
        refuses(reply, 429)
        stage.let_go(2)


async def post_one(client: Any) -> None:
    assert (await client.post(INFER, json=ONE)).status_code == 200


async def test_no_answer_in_time_is_a_504(stage: Stage) -> None:
    async with serving(held(stage), timeout=0.01) as client:
        refuses(await client.post(INFER, json=ONE), 504)
        stage.let_go()


async def test_a_worker_that_dies_is_a_503() -> None:
    def die(_: Any) -> Any:
        import os

        os._exit(3)

    async with serving(calling(die), retries=0) as client:
        reply = await client.post(INFER, json=ONE)
        assert reply.headers["retry-after"] == "1"
        assert "exit" in refuses(reply, 503)


SCOPE = {"type": "http", "method": "POST", "path": INFER, "headers": []}


def receiving(*messages: Any, gone: asyncio.Event | None = None) -> Callable[[], Any]:
    """What the application receives: these, and that the client has gone when it has."""
    left = [*messages]

    async def receive() -> Any:
        if left:
            return left.pop(0)
        assert gone is not None, "nothing more should be read"
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def unwanted(message: Any) -> None:
    raise AssertionError(message)


async def test_a_client_that_goes_away_cancels_its_prediction(stage: Stage) -> None:
    gone = asyncio.Event()
    receive = receiving({"type": "http.request", "body": json.dumps(ONE).encode()}, gone=gone)
    async with PredictorPool(held(stage), workers=1) as pool, anyio.create_task_group() as group:
        group.start_soon(application(pool), SCOPE, receive, unwanted)
        await stage.hears()
        gone.set()
        await until(lambda: pool.statistics().cancelled == 1)
        stage.let_go()


async def test_a_server_that_cancels_a_request_is_obeyed(stage: Stage) -> None:
    message = {"type": "http.request", "body": json.dumps(ONE).encode()}
    receive = receiving(message, gone=asyncio.Event())
    async with PredictorPool(held(stage), workers=1) as pool:
        request = asyncio.ensure_future(application(pool)(SCOPE, receive, unwanted))
        await stage.hears()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert pool.statistics().cancelled == 1
        stage.let_go()


async def test_a_client_that_goes_away_when_its_answer_has_come_gets_it() -> None:
    gone, sent = asyncio.Event(), []
    message = {"type": "http.request", "body": json.dumps(ONE).encode()}

    async def send(message: Any) -> None:
        gone.set()
        await anyio.lowlevel.checkpoint()
        sent.append(message["type"])

    async with PredictorPool(doubling(), workers=1) as pool:
        await application(pool)(SCOPE, receiving(message, gone=gone), send)
    assert sent == ["http.response.start", "http.response.body"]


async def test_a_client_that_goes_away_within_its_body_is_forgotten() -> None:
    begin = {"type": "http.request", "body": b"{", "more_body": True}
    receive = receiving(begin, {"type": "http.disconnect"})
    await application(PredictorPool(people()))(SCOPE, receive, unwanted)


async def test_metrics_count_requests_by_outcome() -> None:
    async with serving(people()) as client:
        await client.post(INFER, json=THREE)
        await client.post(INFER, json={"inputs": [AGE]})
        reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    lines = reply.text.splitlines()
    assert 'predictpool_requests_total{outcome="answered",pool="people"} 1.0' in lines
    assert 'predictpool_requests_total{outcome="invalid",pool="people"} 1.0' in lines
    assert 'predictpool_rows_total{pool="people"} 2.0' in lines
    assert 'predictpool_ready_workers{pool="people"} 1.0' in lines
