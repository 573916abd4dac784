"""The Open Inference Protocol, version 2, as KServe and Triton speak it over HTTP."""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from predictpool import InvalidFeatures
from predictpool._columns import Array
from predictpool._features._conversion import Converter
from predictpool._features._spec import FeatureSpec
from predictpool.serve._binary import from_bytes, to_bytes
from predictpool.serve._http import (
    Paths,
    Receive,
    Refusal,
    Reply,
    Scope,
    body_of,
    dumps,
    get,
    json_object,
    json_reply,
    kind_of,
    shown,
)
from predictpool.serve._model import Model
from predictpool.serve._tensors import BYTES, DTYPES, LONGEST_NAME, Tensor, datatype_of, texts_of

SERVER: Final[dict[str, Any]] = {
    "name": "predictpool",
    "version": importlib.metadata.version("predictpool"),
    "extensions": ["binary_tensor_data"],
}

_JSON_LENGTH = b"inference-header-content-length"
# The length of a shape that numpy 1 can hold: nothing longer is multiplied, or told.
MOST_AXES: Final = 32
_TOO_LONG: Final = 2**64


def paths(model: Model, limit: int) -> Paths:
    """Return what can be asked for, of bodies of at most ``limit`` bytes."""

    async def infer(scope: Scope, receive: Receive) -> Reply:
        headers = dict(scope["headers"])
        body = await body_of(headers, receive, limit)
        request = read(body, headers.get(_JSON_LENGTH))
        return written(model.name, request, await model.infer(request.inputs, receive))

    one: Paths = {
        "": get(lambda: json_reply(_metadata(model))),
        "/ready": get(
            lambda: json_reply(
                {"name": model.name, "ready": model.ready}, 200 if model.ready else 503
            )
        ),
        "/infer": {"POST": infer},
    }
    return {
        "/v2": get(lambda: json_reply(SERVER)),
        "/v2/health/live": get(lambda: json_reply({"live": True})),
        "/v2/health/ready": get(
            lambda: json_reply({"ready": model.ready}, 200 if model.ready else 503)
        ),
        **model.paths("/v2", one),
    }


# --- metadata ----------------------------------------------------------------------


def _metadata(model: Model) -> dict[str, Any]:
    inputs = model.inputs
    document: dict[str, Any] = {
        "name": model.name,
        "versions": [model.VERSION],
        "platform": "predictpool",
        "inputs": _tensors(inputs),
        "outputs": _tensors(model.outputs),
    }
    if inputs is None:
        unknown = "unknown: inputs of all names, datatypes and shapes reach the predictor"
        document["parameters"] = {"signature": unknown}
    return document


def _tensors(tensors: tuple[Tensor, ...] | None) -> list[dict[str, Any]]:
    return [
        {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        for tensor in tensors or ()
    ]


# --- requests ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client asks.

    Attributes:
        id: its own, which it gets back.
        inputs: by name.
        outputs: those that it wants, by name, and whether as bytes; None for all.
        binary: whether it gets those as bytes of which it does not say.
    """

    id: str | None
    inputs: dict[str, Array]
    outputs: dict[str, bool] | None
    binary: bool


def read(body: bytes, json_length: bytes | None = None) -> InferRequest:
    """Return the request that a body is.

    Args:
        body: JSON, and behind it the bytes of binary inputs.
        json_length: the value of the header that says how long the JSON is.

    Raises:
        Refusal: it is malformed.
    """
    length = len(body) if json_length is None else _length(json_length, len(body))
    document = json_object(body[:length])
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise Refusal(400, f"id is {kind_of(request_id)}, expected text")
    binary = _flag(_parameters(document, "the request"), "binary_data_output", False)
    inputs = _inputs(_list(document, "inputs"), memoryview(body)[length:])
    return InferRequest(request_id, inputs, _outputs(document, binary), binary)


def _length(said: bytes, whole: int) -> int:
    if not said.isdigit() or len(said) > 18 or int(said) > whole:
        raise Refusal(
            400,
            f"Inference-Header-Content-Length is {said.decode('latin-1')!r}, expected the length "
            f"of the JSON at the beginning of the body, which has {whole} bytes",
        )
    return int(said)


def _list(document: dict[str, Any], name: str) -> list[Any]:
    values = document.get(name)
    if type(values) is not list:
        raise Refusal(400, f"{name} is {kind_of(values)}, expected a list")
    return values


def _parameters(document: dict[str, Any], of: str) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise Refusal(400, f"parameters of {of} is {kind_of(parameters)}, expected an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise Refusal(400, f"{name} is {kind_of(value)}, expected true or false")
    return value


def _name(tensor: Any, what: str) -> str:
    if type(tensor) is not dict:
        raise Refusal(400, f"an element of {what}s is {kind_of(tensor)}, expected an object")
    name = tensor.get("name")
    if type(name) is not str or not 0 < len(name) <= LONGEST_NAME:
        raise Refusal(
            400,
            f"the name of an {what} is {shown(name)}, expected text of at most "
            f"{LONGEST_NAME} characters",
        )
    return name


def _outputs(document: dict[str, Any], binary: bool) -> dict[str, bool] | None:
    if document.get("outputs") is None:
        return None
    wanted: dict[str, bool] = {}
    for tensor in _list(document, "outputs"):
        name = _name(tensor, "output")
        parameters = _parameters(tensor, f"output {name!r}")
        if "classification" in parameters:
            raise Refusal(400, f"output {name!r} asks for a classification: take its values")
        wanted[name] = _flag(parameters, "binary_data", binary)
    return wanted


def _inputs(tensors: list[Any], data: memoryview) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    at = 0
    for tensor in tensors:
        name = _name(tensor, "input")
        if name in inputs:
            raise Refusal(400, f"input {name!r} is there twice")
        datatype, shape = _form(name, tensor)
        size = None
        if "parameters" in tensor:
            size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
        if size is None:
            values = _from_json(name, datatype, shape, tensor.get("data"))
        else:
            _check_size(name, size, len(data) - at, tensor)
            values = from_bytes(name, datatype, shape, data[at : at + size])
            at += size
        inputs[name] = values if len(shape) == 1 else _shaped(name, values, shape)
    if not inputs:
        raise Refusal(400, "inputs is empty, expected at least one")
    if at < len(data):
        raise Refusal(400, f"the body has {len(data) - at} bytes behind its last input")
    return inputs


def _form(name: str, tensor: dict[str, Any]) -> tuple[str, list[int]]:
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if type(datatype) is not str or datatype not in DTYPES:
        raise Refusal(
            400,
            f"the datatype of input {name!r} is {shown(datatype)}, expected {', '.join(DTYPES)}",
        )
    if type(shape) is list and len(shape) <= MOST_AXES:
        for axis in shape:
            if type(axis) is not int or not 0 <= axis < _TOO_LONG:
                break
        else:
            return datatype, shape
    raise Refusal(
        400,
        f"the shape of input {name!r} is {shown(shape)}, expected a list of at most "
        f"{MOST_AXES} whole numbers of 64 bits",
    )


def _check_size(name: str, size: Any, left: int, tensor: dict[str, Any]) -> None:
    if type(size) is not int or not 0 <= size <= left:
        raise Refusal(
            400,
            f"binary_data_size of input {name!r} is {shown(size)}, expected a number of bytes, "
            f"of which the body has {left} more behind its JSON (the header "
            "Inference-Header-Content-Length says where that ends)",
        )
    if "data" in tensor:
        raise Refusal(400, f"input {name!r} has data and binary_data_size, expected one of them")


def _from_json(name: str, datatype: str, shape: list[int], data: Any) -> Array:
    if type(data) is not list:
        raise Refusal(400, f"data of input {name!r} is {kind_of(data)}, expected a list")
    if data and type(data[0]) is list:
        data = _flat(name, shape, data)
    if len(data) != math.prod(shape):
        raise Refusal(
            400, f"data of input {name!r} has {len(data)} values, expected those of shape {shape}"
        )
    try:
        return _converter(name, datatype).rows(data)
    except InvalidFeatures as error:
        raise Refusal(400, str(error)) from error


def _flat(name: str, shape: list[int], data: list[Any]) -> list[Any]:
    for axis in shape[1:]:
        if not data or type(data[0]) is not list:
            break
        if any(type(row) is not list or len(row) != axis for row in data):
            raise Refusal(400, f"data of input {name!r} does not have the shape {shape}")
        data = [*chain.from_iterable(data)]
    return data


@lru_cache(maxsize=1024)
def _converter(name: str, datatype: str) -> Converter:
    dtype = DTYPES[datatype]
    spec = FeatureSpec(dtype, allow_nan=dtype.kind == "f")
    return Converter(name, spec, place="element", expected=f"{datatype} elements")


def _shaped(name: str, values: Array, shape: list[int]) -> Array:
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:  # nothing, but with axes beyond all measure
        raise Refusal(400, f"the shape of input {name!r} is {shape}: {error}") from error


# --- replies -----------------------------------------------------------------------


def written(model: str, request: InferRequest, outputs: dict[str, Array]) -> Reply:
    """Return the reply to a request.

    Raises:
        Refusal: an output is unknown, or not of the protocol's datatypes.
    """
    wanted = request.outputs
    if wanted is None:
        wanted = dict.fromkeys(outputs, request.binary)
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in wanted.items():
        if name not in outputs:
            known = ", ".join(outputs)
            raise Refusal(400, f"output {name!r} is unknown: this model has {known}")
        values = outputs[name]
        datatype = datatype_of(name, values)
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype,
            "shape": list(values.shape),
        }
        if binary:
            blobs.append(to_bytes(datatype, values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = _to_json(name, datatype, values)
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model, "model_version": Model.VERSION}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = tensors
    head = dumps(document)
    if not blobs:
        return Reply(200, head)
    length = [(_JSON_LENGTH, b"%d" % len(head))]
    return Reply(200, b"".join([head, *blobs]), b"application/octet-stream", length)


def _to_json(name: str, datatype: str, values: Array) -> list[Any]:
    if datatype != BYTES:
        return values.ravel().tolist()  # type: ignore[no-any-return]
    try:
        return [item.decode() for item in texts_of(values)]
    except UnicodeDecodeError as error:
        raise Refusal(
            400,
            f"output {name!r} has bytes that are no UTF-8, which JSON does not have: ask for it "
            "with binary_data",
        ) from error
