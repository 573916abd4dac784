"""The server's description of itself, as OpenAPI 3.1; a test holds it true."""

from __future__ import annotations

from typing import Any, Final

from predictpool.serve._model import Model
from predictpool.serve._open_inference import MOST_AXES, SERVER
from predictpool.serve._tensorflow_serving import SIGNATURE
from predictpool.serve._tensors import DTYPES, LONGEST_NAME

_Schema = dict[str, Any]


def _object(required: list[str], **properties: Any) -> _Schema:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: _Schema, **limits: Any) -> _Schema:
    return {"type": "array", "items": items, **limits}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Final[_Schema] = {"type": "string"}
_NAME: Final[_Schema] = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
_FLAG: Final[_Schema] = {"type": "boolean"}
_AXIS: Final[_Schema] = {"type": "integer", "minimum": -1}
_SIZE: Final[_Schema] = {"type": "integer", "minimum": 0}
_DATATYPE: Final[_Schema] = {"type": "string", "enum": [*DTYPES]}
_ANYTHING: Final[_Schema] = {}

_FORM = {"name": _NAME, "datatype": _DATATYPE}

_SCHEMAS: Final[dict[str, _Schema]] = {
    "Error": _object(["error"], error=_TEXT),
    "Live": _object(["live"], live=_FLAG),
    "Ready": _object(["ready"], ready=_FLAG),
    "ModelReady": _object(["name", "ready"], name=_TEXT, ready=_FLAG),
    "Server": _object(
        ["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "Tensor": _object(["name", "datatype", "shape"], **_FORM, shape=_list(_AXIS)),
    "Model": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_ref("Tensor")),
        outputs=_list(_ref("Tensor")),
        parameters=_object([], signature=_TEXT),
    ),
    "Input": _object(
        ["name", "datatype", "shape"],
        **_FORM,
        shape=_list(_SIZE, maxItems=MOST_AXES),
        parameters=_object([], binary_data_size=_SIZE),
        data=_list(_ANYTHING),
    ),
    "WantedOutput": _object(["name"], name=_NAME, parameters=_object([], binary_data=_FLAG)),
    "InferRequest": _object(
        ["inputs"],
        id=_TEXT,
        parameters=_object([], binary_data_output=_FLAG),
        inputs=_list(_ref("Input"), minItems=1),
        outputs=_list(_ref("WantedOutput")),
    ),
    "Output": _object(
        ["name", "datatype", "shape"],
        **_FORM,
        shape=_list(_SIZE),
        parameters=_object(["binary_data_size"], binary_data_size=_SIZE),
        data=_list(_ANYTHING),
    ),
    "InferReply": _object(
        ["model_name", "model_version", "outputs"],
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_list(_ref("Output")),
    ),
    "PredictRequest": {
        "oneOf": [
            _object(
                ["instances"],
                signature_name={"const": SIGNATURE},
                instances=_list(_ANYTHING, minItems=1),
            ),
            _object(["inputs"], signature_name={"const": SIGNATURE}, inputs=_ANYTHING),
        ]
    },
    "PredictReply": {
        "oneOf": [
            _object(["predictions"], predictions=_list(_ANYTHING)),
            _object(["outputs"], outputs=_ANYTHING),
        ]
    },
    "ModelStatus": _object(
        ["model_version_status"],
        model_version_status=_list(
            _object(
                ["version", "state", "status"],
                version=_TEXT,
                state={"type": "string", "enum": ["AVAILABLE", "LOADING"]},
                status=_object(["error_code", "error_message"]),
            )
        ),
    ),
    "ModelMetadata": _object(
        ["model_spec", "metadata"],
        model_spec=_object(["name", "signature_name", "version"]),
        metadata=_object(["signature_def"]),
    ),
}

_REFUSED: Final = {
    400: "The request is malformed, or its features do not fit the model.",
    408: "The body took too long to come.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding that is neither gzip nor deflate.",
    429: "Too many requests are waiting.",
    500: "The model failed, or the server.",
    503: "No worker can answer.",
    504: "There was no answer in time.",
}


def description(model: Model) -> dict[str, Any]:
    """Return the description of a server that has this model."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"predictpool serve: {model.name}",
            "version": SERVER["version"],
        },
        "paths": {
            "/v2": _look("Server metadata", "Server"),
            "/v2/health/live": _look("Whether the server is there", "Live"),
            "/v2/health/ready": _look("Whether a worker is ready", "Ready", "Ready"),
            **_of_model(f"/v2/models/{model.name}", _V2),
            **_of_model(f"/v1/models/{model.name}", _V1),
            "/metrics": _look_at_text("Metrics for Prometheus"),
            "/openapi.json": _look("This description", None),
        },
        "components": {"schemas": _SCHEMAS},
    }


def _of_model(path: str, operations: dict[str, Any]) -> dict[str, Any]:
    bases = (path, f"{path}/versions/{Model.VERSION}")
    return {base + rest: done for base in bases for rest, done in operations.items()}


def _look(summary: str, schema: str | None, otherwise: str | None = None) -> dict[str, Any]:
    content = _json(_ANYTHING if schema is None else _ref(schema))
    responses = {"200": {"description": "It is.", "content": content}}
    if otherwise is not None:
        content = _json(_ref(otherwise))
        responses["503"] = {"description": "Not now.", "content": content}
    return {"get": {"summary": summary, "responses": responses}}


def _look_at_text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": _TEXT}}
    return {
        "get": {
            "summary": summary,
            "responses": {"200": {"description": "All of them.", "content": content}},
        }
    }


def _ask(
    summary: str, request: str, reply: str, bytes_too: dict[str, Any] | None = None
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": "The outputs.",
            "content": {**_json(_ref(reply)), **(bytes_too or {})},
        }
    }
    for status, words in _REFUSED.items():
        responses[str(status)] = {"description": words, "content": _json(_ref("Error"))}
    body = {"required": True, "content": {**_json(_ref(request)), **(bytes_too or {})}}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


def _json(schema: _Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


# JSON, and behind it the bytes of tensors.
_BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

_V2: Final = {
    "": _look("Model metadata", "Model"),
    "/ready": _look("Whether the model is ready", "ModelReady", "ModelReady"),
    "/infer": _ask("Predict", "InferRequest", "InferReply", _BYTES),
}
_V1: Final = {
    "": _look("Model status", "ModelStatus"),
    "/metadata": _look("Model metadata", "ModelMetadata"),
    ":predict": _ask("Predict", "PredictRequest", "PredictReply"),
}
