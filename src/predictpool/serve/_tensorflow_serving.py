"""TensorFlow Serving's REST API, for those who come from there: ``predict`` and what it needs."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from predictpool import Signature
from predictpool._columns import Array
from predictpool._features._values import object_array
from predictpool.serve._http import (
    Paths,
    Receive,
    Refusal,
    Reply,
    Scope,
    body_of,
    get,
    json_object,
    json_reply,
    kind_of,
    shown,
)
from predictpool.serve._model import Model
from predictpool.serve._tensors import (
    BYTES,
    INPUT,
    LONGEST_NAME,
    Tensor,
    datatype_of,
    quoted_list,
    texts_of,
)

SIGNATURE = "serving_default"

_DT = {
    "BOOL": "DT_BOOL",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    BYTES: "DT_STRING",
}


def paths(model: Model, limit: int) -> Paths:
    """Return what can be asked for, of bodies of at most ``limit`` bytes."""

    async def predict(scope: Scope, receive: Receive) -> Reply:
        body = await body_of(dict(scope["headers"]), receive, limit)
        features, rows = read(body, model.pool.signature)
        outputs = await model.predict(features, receive)
        return json_reply(columns(outputs) if rows is None else by_row(outputs, rows))

    one: Paths = {
        "": get(lambda: json_reply(_status(model))),
        "/metadata": get(lambda: json_reply(_metadata(model))),
        ":predict": {"POST": predict},
    }
    return model.paths("/v1", one)


# --- metadata ----------------------------------------------------------------------


def _status(model: Model) -> dict[str, Any]:
    version = {
        "version": model.VERSION,
        "state": "AVAILABLE" if model.ready else "LOADING",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return {"model_version_status": [version]}


def _metadata(model: Model) -> dict[str, Any]:
    signature = {
        "inputs": _tensors(model.inputs),
        "outputs": _tensors(model.outputs),
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": model.VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensors(tensors: tuple[Tensor, ...] | None) -> dict[str, Any]:
    return {
        tensor.name: {
            "name": tensor.name,
            "dtype": _DT.get(tensor.datatype, f"DT_{tensor.datatype}"),
            "tensor_shape": {
                "dim": [{"size": str(axis), "name": ""} for axis in tensor.shape],
                "unknown_rank": False,
            },
        }
        for tensor in tensors or ()
    }


# --- requests ----------------------------------------------------------------------


def read(body: bytes, signature: Signature | None) -> tuple[Any, int | None]:
    """Return the features of a request, and how many rows it has in the row format.

    In the column format that is None.

    Raises:
        Refusal: it is malformed.
    """
    document = json_object(body, _bytes_of if b'"b64"' in body else None)
    name = document.get("signature_name") or SIGNATURE
    if name != SIGNATURE:
        raise Refusal(
            400, f"signature_name is {shown(name)}, expected {SIGNATURE!r}: a predictor has one"
        )
    if ("instances" in document) == ("inputs" in document):
        raise Refusal(
            400, "the body needs either instances (a list of rows) or inputs (columns by name)"
        )
    if "inputs" in document:
        return _named(document["inputs"], signature), None
    rows = document["instances"]
    if type(rows) is not list or not rows:
        what = "empty" if type(rows) is list else kind_of(rows)
        raise Refusal(400, f"instances is {what}, expected a list of rows")
    if type(rows[0]) is dict:
        return _named(_transposed(rows), signature), len(rows)
    return _named(rows, signature), len(rows)


def _bytes_of(document: dict[str, Any]) -> Any:
    """Return the bytes that ``{"b64": …}`` stands for, and every other object as it is."""
    if [*document] != ["b64"]:
        return document
    text = document["b64"]
    if type(text) is not str:
        raise Refusal(400, f"b64 is {kind_of(text)}, expected text in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"b64 is {text[:40]!r}, which is no base64: {error}") from error


def _transposed(rows: list[Any]) -> dict[str, list[Any]]:
    names = rows[0].keys()
    for number, row in enumerate(rows):
        if type(row) is not dict or row.keys() != names:
            given = quoted_list(row) if type(row) is dict else kind_of(row)
            raise Refusal(
                400,
                f"instance {number} has {given}, expected what the first has: {quoted_list(names)}",
            )
    return {name: [row[name] for row in rows] for name in names}


def _named(values: Any, signature: Signature | None) -> Any:
    """Return columns as the model takes them: a single input may be given without its name."""
    named = type(values) is dict
    if named and not values:
        raise Refusal(400, "the inputs have no name, expected at least one")
    if (signature is None or signature.unnamed) and named and [*values] == [INPUT]:
        values = values[INPUT]
    if type(values) is dict:
        _check_names(values)
    elif signature is not None and not signature.unnamed and len(signature.features) == 1:
        return {next(iter(signature.features)): values}
    return values


def _check_names(values: dict[str, Any]) -> None:
    for name in values:
        if len(name) > LONGEST_NAME:
            raise Refusal(
                400,
                f"the name of an input is {shown(name)}, expected text of at most "
                f"{LONGEST_NAME} characters",
            )


# --- replies -----------------------------------------------------------------------


def columns(outputs: dict[str, Array]) -> dict[str, Any]:
    """Return the answer to ``inputs``: a single output has no name."""
    named = {name: _to_json(name, values) for name, values in outputs.items()}
    return {"outputs": next(iter(named.values())) if len(named) == 1 else named}


def by_row(outputs: dict[str, Array], rows: int) -> dict[str, Any]:
    """Return the answer to ``instances``: one element for each of them.

    Raises:
        Refusal: an output has more or fewer rows.
    """
    for name, values in outputs.items():
        if values.shape[:1] != (rows,):
            raise Refusal(
                400,
                f"output {name!r} has the shape {values.shape} for {rows} instances: ask with "
                "inputs (columns) instead",
            )
    named = [_to_json(name, values) for name, values in outputs.items()]
    if len(named) == 1:
        return {"predictions": named[0]}
    return {
        "predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*named, strict=True)]
    }


def _to_json(name: str, values: Array) -> Any:
    if datatype_of(name, values) != BYTES:
        return values.tolist()
    as_bytes = name.endswith("_bytes")
    texts: list[Any] = [_text_of(item, as_bytes) for item in texts_of(values)]
    return object_array(texts, values.shape).tolist()


def _text_of(item: bytes, as_bytes: bool) -> Any:
    """Return text; as base64 where the output's name asks for it, or where it is no UTF-8."""
    if not as_bytes:
        try:
            return item.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(item).decode()}
