"""As much of HTTP as the fixed paths of one model need, on bare ASGI.

A framework would do nothing here but cost time: there is no path with a parameter in it, and a
body is read once, as a whole, within a limit.

JSON is orjson's, which takes a quarter of the standard library's time for one row of thirteen
features and its answer. What orjson does not know, above all NaN, is left to the latter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import reprlib
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"

# For all of a body to come: a client that sends for ever would keep its connection for ever.
BODY_SECONDS = 60.0


class Reply(NamedTuple):
    """What a client gets."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()


Operation: TypeAlias = Callable[[Scope, Receive], Awaitable[Reply]]
Paths: TypeAlias = Mapping[str, Mapping[str, Operation]]
"""Path → method → what is done."""


class Refusal(Exception):
    """Raised where a client gets an error instead of what it wants.

    Attributes:
        status: of HTTP.
        headers: that the reply has, too.
    """

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers

    def reply(self) -> Reply:
        """Return it in the words of both protocols."""
        return json_reply({"error": str(self)}, self.status, self.headers)


class ClientGone(Exception):
    """Raised when nobody waits for the reply any more."""


def json_reply(document: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """Return a reply that is JSON."""
    return Reply(status, dumps(document), JSON, headers)


def get(answer: Callable[[], Reply]) -> Mapping[str, Operation]:
    """Return the operations of a path that can only be looked at."""

    async def operation(_: Scope, __: Receive) -> Reply:
        return answer()

    return {"GET": operation, "HEAD": operation}


async def body_of(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """Return the body of a request, decompressed.

    Args:
        headers: their names are in small letters.

    Raises:
        Refusal: it has more bytes than ``limit``, compressed or not, or an unknown encoding, or
            takes too long to come.
        ClientGone: it did not come to its end.
    """
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _received(receive, limit)
    except TimeoutError:
        raise _too_slow() from None
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else _decompressed(body, encoding, limit)


async def _received(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest_of(body, receive, limit)
    elif message["type"] == "http.disconnect":
        raise ClientGone
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _rest_of(begin: bytes, receive: Receive, limit: int) -> bytes:
    body, more = bytearray(begin), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return bytes(body)


def _decompressed(body: bytes, encoding: bytes, limit: int) -> bytes:
    said = encoding.decode("latin-1").strip().lower()
    if said in ("", "identity"):
        return body
    if said not in ("gzip", "deflate"):
        raise Refusal(415, f"Content-Encoding is {said!r}, expected gzip, deflate or none")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # of both, as their first bytes say
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(400, f"the body is not compressed by {said}: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not inflate.eof or inflate.unused_data:
        what = "goes on behind its end" if inflate.eof else "is cut off"
        raise Refusal(400, f"the body is compressed by {said}, and {what}")
    return plain


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {limit:,} bytes, which is all that this server takes: send fewer "
        "rows in a request, or start it with more --max-body-megabytes",
    )


def _too_slow() -> Refusal:
    return Refusal(
        408,
        f"the body has not come within {BODY_SECONDS:g} seconds: send fewer rows in a request",
        [(b"connection", b"close")],  # what is still to come is no request
    )


def dumps(document: Any) -> bytes:
    """Return a document as JSON, where NaN and infinite numbers are what Python calls them."""
    with contextlib.suppress(orjson.JSONEncodeError):  # half of a character, from a client's JSON
        written: bytes = orjson.dumps(document)
        if b"null" not in written:  # which is what orjson makes of NaN
            return written
    return json.dumps(document, separators=(",", ":")).encode()


Hook: TypeAlias = Callable[[dict[str, Any]], Any]


def json_object(body: bytes, hook: Hook | None = None) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Args:
        hook: gets each object in it, and returns what stands for that.

    Raises:
        Refusal: it is something else.
    """
    try:
        document = _loads(body, hook)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from error
    if type(document) is not dict:
        raise Refusal(400, f"the body is {kind_of(document)}, expected a JSON object")
    return document


def _loads(body: bytes, hook: Hook | None) -> Any:
    if hook is None:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(body)
    return json.loads(body, object_hook=hook)


class _Brief(reprlib.Repr):
    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Leave its keys alone: the standard library's sorts all of them."""
        return "{...}" if x else "{}"


shown: Final = _Brief().repr
"""Return what a client sent, as a message may quote it: however long or deep it is."""

_KINDS = {
    bool: "a boolean",
    bytes: "bytes",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "text",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Return in words what kind of JSON a value is."""
    return _KINDS[type(value)]
