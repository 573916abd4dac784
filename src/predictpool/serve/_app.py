"""The ASGI application: every path that there is, and what becomes of errors."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from predictpool.serve import _open_inference, _openapi, _tensorflow_serving
from predictpool.serve._http import (
    ClientGone,
    Operation,
    Paths,
    Receive,
    Refusal,
    Reply,
    Scope,
    Send,
    get,
    json_reply,
)
from predictpool.serve._model import Model, logger

_METRICS = CONTENT_TYPE_LATEST.encode()


class Application:
    """Serves one model; its pool is opened and closed by whoever runs the application.

    Args:
        metrics: what ``/metrics`` shows.
        max_body_bytes: a request with more is refused.
    """

    def __init__(self, model: Model, metrics: CollectorRegistry, *, max_body_bytes: int) -> None:
        self._model = model
        description = json_reply(_openapi.description(model))
        self._paths: Paths = {
            **_open_inference.paths(model, max_body_bytes),
            **_tensorflow_serving.paths(model, max_body_bytes),
            "/metrics": get(lambda: Reply(200, generate_latest(metrics), _METRICS)),
            "/openapi.json": get(lambda: description),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        try:
            reply = await self._operation(scope)(scope, receive)
        except Refusal as refusal:
            reply = refusal.reply()
        except ClientGone:
            return
        except Exception:  # noqa: BLE001 - a mistake of ours; the client gets JSON all the same
            logger.exception("%s %s failed", scope["method"], scope["path"])
            reply = Refusal(500, "the server failed: its log says why").reply()
        await _send(reply, send)

    def _operation(self, scope: Scope) -> Operation:
        path, method = scope["path"], scope["method"]
        operations = self._paths.get(path)
        if operations is None:
            raise Refusal(
                404,
                f"there is nothing at {path!r}: this server has the model {self._model.name!r}, "
                f"version {Model.VERSION}, and describes itself at '/openapi.json'",
            )
        if method not in operations:
            allowed = ", ".join(operations)
            allow = [(b"allow", allowed.encode())]
            raise Refusal(405, f"{method} is not for {path!r}, expected {allowed}", allow)
        return operations[method]


async def _send(reply: Reply, send: Send) -> None:
    headers = [
        (b"content-type", reply.content_type),
        (b"content-length", b"%d" % len(reply.body)),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
