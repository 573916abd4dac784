"""The worker process: load, warm up, then receive, predict, send until told to stop.

No event loop and no thread of our own: the worker blocks on its one socket. It never
decides when to end, except when the socket does: then the application has gone.
"""

from __future__ import annotations

import mmap
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np

from predictpool import _wire
from predictpool._columns import Array, OutputEncoder, Parts, Schema, decode_payload, parse_schema
from predictpool._devices import Device
from predictpool._features._signature import Signature, SignatureSource, as_arrays
from predictpool._features._spec import Arrays
from predictpool._wire import Frame, Kind
from predictpool.predictors._source import ModelSource

# Set in a worker while it loads its predictor.
LOADING = threading.Event()


@dataclass(frozen=True)
class Start:
    """What a worker is told first.

    Attributes:
        predictor: the pickled predictor; unpickled here and nowhere else.
        device: where the worker is pinned.
        warmup: pickled features to run before the worker is ready, or None.
        signature: what the pool knows of the signature already, or None.
    """

    predictor: bytes
    device: Device
    warmup: bytes | None
    signature: Signature | None


@dataclass(frozen=True)
class Ready:
    """What a worker says when it is ready.

    Attributes:
        signature: what the predictor takes, now that it is loaded.
        row_wise: whether rows of several requests may share a call.
        load_seconds: how long loading and warming up took.
        warning: something that the user should know, or "".
        source: where newer versions of the model come from, or None.
        method: how the predictor keeps its model loaded, where it has several ways, or None.
    """

    signature: SignatureSource
    row_wise: bool
    load_seconds: float
    warning: str
    source: ModelSource | None = None
    method: str | None = None


@dataclass(frozen=True)
class Failure:
    """An exception on its way to the application.

    Attributes:
        type_name: the qualified name of its type.
        text: what it says.
        traceback: the traceback, as text.
        pickled: the exception itself, or None where it does not survive pickling.
        broke_rows: whether outputs without a row axis are the reason.
    """

    type_name: str
    text: str
    traceback: str
    pickled: bytes | None
    broke_rows: bool = False


class WarmUpFailed(Exception):
    """Raised when the model cannot run the features of the warm-up."""


class RowsBroken(Exception):
    """Raised when the outputs of joined requests cannot be divided among them."""


def main(connection: socket.socket, buffer: int) -> None:
    """Serve one application until it says stop or goes away.

    Args:
        buffer: the descriptor of the memory that is shared with it.
    """
    frames = _receive(connection)
    first = next(frames, None)
    if first is None:
        return
    LOADING.set()
    try:
        predictor, ready = load_predictor(pickle.loads(first.payload))
        message = _wire.encode_message(Kind.READY, 0, ready)
    except Exception as error:  # noqa: BLE001 - whatever it is, the application is told
        _send(connection, _wire.encode_message(Kind.START_FAILED, 0, describe(error)))
        return
    finally:
        LOADING.clear()
    _send(connection, message)
    encoder, shared = OutputEncoder(), _SharedMemory(buffer)
    for frame in frames:
        if frame.kind is Kind.STOP:
            predictor.close()
            _send(connection, _wire.encode_frame(Kind.GOODBYE))
            return
        _send(connection, answer(predictor, encoder, shared.payload, frame))


def exit_by(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the traceback that a process would have ended with."""
    status = (error.code or 0) if isinstance(error, SystemExit) else 1
    report = "".join(traceback.format_exception(error))
    return status if isinstance(status, int) else 1, report


def describe(error: BaseException, *, broke_rows: bool = False) -> Failure:
    """Return an exception in a form that always travels."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken; its type still tells
        text = "(its message cannot be shown)"
    # The first frame is ours; the user's begin below it.
    below = error.__traceback__.tb_next if error.__traceback__ else None
    lines = traceback.format_exception(kind, error, below or error.__traceback__)
    return Failure(name, text, "".join(lines), _pickled(error), broke_rows)


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error, protocol=5)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - many pickle but do not unpickle; their text travels
        return None
    return data


# --- start -------------------------------------------------------------------------


def load_predictor(start: Start) -> tuple[Any, Ready]:
    """Load a predictor and warm it up. Raises whatever it raises."""
    began = time.monotonic()
    predictor = cloudpickle.loads(start.predictor)
    predictor.load(start.device)
    row_wise, warning = bool(predictor.row_wise), ""
    warmup = _warmup_features(predictor.signature, start)
    if warmup is not None and not _warm_up(predictor, *warmup):
        row_wise = False
        warning = (
            "the outputs of the model do not have the rows on their first axis, or those of a row "
            "depend on the other rows, so every request runs as a call of its own; such a "
            "predictor should say row_wise=False"
        )
    seconds = time.monotonic() - began
    method = getattr(predictor, "method", None)
    source = _source(predictor)
    return predictor, Ready(predictor.signature, row_wise, seconds, warning, source, method)


def _source(predictor: Any) -> ModelSource | None:
    """Return where newer versions come from, as far as the predictor says it."""
    source = getattr(predictor, "source", None)
    if source is not None and not isinstance(source, ModelSource):
        raise TypeError(
            f"the predictor's source is {source!r}, expected a ModelSource or None: "
            "ModelSource.at(path, kind) makes one"
        )
    return source


def _warmup_features(signature: SignatureSource, start: Start) -> tuple[Arrays, bool] | None:
    """Return the user's example, or else one row of zeros and empty text."""
    known = signature if isinstance(signature, Signature) else start.signature
    if start.warmup is not None:
        given = cloudpickle.loads(start.warmup)
        if known is None and signature is None:
            return as_arrays(given)
        if known is None:
            known = Signature.inferred(as_arrays(given)[0])
        return known.conform(given), not known.unnamed
    return None if known is None else (known.example(), not known.unnamed)


def _warm_up(predictor: Any, arrays: Arrays, mapping: bool) -> bool:
    """Run the model, and tell whether its outputs can be divided by rows."""
    first = _divided_outputs(predictor, arrays, mapping)
    if not predictor.row_wise or first is None:
        return not predictor.row_wise
    # A second run with one row more, and a longer one where it can be: an output of a fixed
    # length that happens to be the number of rows, one whose rows are as long as the whole
    # call makes them, or a mean over the rows would be somebody else's.
    more = _divided_outputs(predictor, _one_row_more(predictor.signature, arrays), mapping)
    return more is not None and all(map(_begins_with, more, first))


def _divided_outputs(predictor: Any, arrays: Arrays, mapping: bool) -> list[Array] | None:
    """Run the model, and return its outputs; None where they cannot be divided by rows."""
    rows = len(next(iter(arrays.values())))
    features = {name: _as_received(values) for name, values in arrays.items()}
    try:
        outputs = predictor.predict(features if mapping else next(iter(features.values())))
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(str(error))}"
        raise WarmUpFailed(
            f"the warm-up failed on {_describe_arrays(arrays)}. It said: {said}. If it is such "
            "features that the model cannot take, give the pool warmup= with some that it can"
        ) from error
    encoded = OutputEncoder().encode(outputs, rows)
    if encoded is None or not encoded[0].divisible:
        return None
    named = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    # Copies: a model may hand out the same array again.
    return [np.array(values) for values in named]


def _as_received(values: Array) -> Array:
    """Return a view like those of a request, which may not be written to."""
    view = values.view()
    if values.dtype.kind != "O":  # text is made for each request
        view.flags.writeable = False
    return view


def _one_row_more(signature: SignatureSource, arrays: Arrays) -> Arrays:
    """Return the rows and the first one again, twice as long if it has a length of its own."""
    more = {name: np.concatenate([values, values[:1]]) for name, values in arrays.items()}
    if isinstance(signature, Signature):
        for name, spec in signature.features.items():
            if spec.ragged and len(arrays[name]):
                more[name][-1] = np.tile(more[name][0], 2)
    return more


def _begins_with(more: Array, first: Array) -> bool:
    """Whether the outputs of the same rows are the same, but for what kernels make of it."""
    if more.shape[1:] != first.shape[1:] or more.dtype != first.dtype:
        return False
    if first.dtype.kind not in "fc":
        return True  # where two classes are as probable, it may be the one or the other
    return np.allclose(more[: len(first)], first, rtol=1e-3, atol=1e-3, equal_nan=True)


def one_line(text: str) -> str:
    """Return what a message says first, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[:1]
    if len(lines) > 1 and lines[0].endswith(":"):
        # TensorFlow's history of the graph ends with what went wrong, and then names the node.
        node = next((number for number, line in enumerate(lines) if line.startswith("[[{{node")), 2)
        said.append(lines[node - 1])
    return " ".join(said).removesuffix(":")


def _describe_arrays(arrays: Arrays) -> str:
    return ", ".join(f"{name or 'features'}: {_brief(values)}" for name, values in arrays.items())


def _brief(values: Any) -> str:
    return f"{values.dtype}{list(values.shape)}"


# --- serve -------------------------------------------------------------------------


class _SharedMemory:
    """The worker's end of `predictpool._shared_buffer`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._view = memoryview(b"")

    def payload(self, frame: Frame) -> memoryview:
        """Return a frame's payload, for reading, wherever it is; valid until the answer."""
        if not frame.shared:
            return frame.payload.toreadonly()
        offset, size = _wire.SHARED.unpack(frame.payload)
        if offset + size > len(self._view):
            self._view = memoryview(mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ))
        return self._view[offset : offset + size]


def answer(
    predictor: Any, encoder: OutputEncoder, payload: Callable[[Frame], memoryview], frame: Frame
) -> Parts:
    """Return the frame that answers a batch: with its outputs, or with what the model raised.

    Args:
        payload: tells where the payload of a frame is.
    """
    try:
        schema = parse_schema(frame.schema)
        features = decode_payload(schema, frame.rows, payload(frame))
        outputs = predictor.predict(features)
        return _encode_answer(encoder.encode(outputs, frame.rows), outputs, frame)
    except RowsBroken as error:
        return _wire.encode_message(Kind.FAILURE, frame.id, describe(error, broke_rows=True))
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
        return _wire.encode_message(Kind.FAILURE, frame.id, describe(error))


def _encode_answer(encoded: tuple[Schema, Parts] | None, outputs: Any, frame: Frame) -> Parts:
    if frame.joined and (encoded is None or not encoded[0].divisible):
        raise RowsBroken("outputs without a row axis cannot be divided among several requests")
    if encoded is None:
        data = pickle.dumps(outputs, protocol=5)
        return _wire.encode_frame(
            Kind.ANSWER_OBJECT, frame.id, rows=frame.rows, payload=(data,), size=len(data)
        )
    schema, parts = encoded
    return _wire.encode_frame(
        Kind.ANSWER,
        frame.id,
        rows=frame.rows,
        schema=schema.blob,
        payload=parts,
        size=sum(map(len, parts)),
    )


# --- the socket --------------------------------------------------------------------


def _receive(connection: socket.socket) -> Iterator[Frame]:
    """Yield frames until the application closes its end."""
    decoder = _wire.FrameDecoder()
    while True:
        try:
            count = connection.recv_into(decoder.buffer)
        except ConnectionResetError:  # it closed with an answer of ours unread
            return
        if count == 0:
            return
        yield from decoder.received(count)


def _send(connection: socket.socket, buffers: Parts) -> None:
    try:
        for buffer in buffers:
            connection.sendall(buffer)
    except (BrokenPipeError, ConnectionResetError):
        # The application has gone, and with it everyone who wanted the answer.
        sys.exit(0)
