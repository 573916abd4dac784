"""Frames and columns arrive as they were sent, and garbage is recognised as such."""

import contextlib
import pickle
import subprocess
import sys
import tracemalloc
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictpool import _wire
from predictpool._columns import Buffer, Parts, WireError
from predictpool._wire import Frame, FrameDecoder, Kind

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCRATCH = 1 << 16


def joined(buffers: Sequence[Buffer]) -> bytearray:
    return bytearray(b"".join(buffers))


# --- frames ------------------------------------------------------------------------


class Sent(NamedTuple):
    """A frame as it is given to `encode_frame`."""

    kind: Kind
    id: int
    rows: int
    joined: bool
    shared: bool
    schema: bytes
    payload: bytes

    def encoded(self) -> bytes:
        payload: Parts = [self.payload[:3], self.payload[3:]]
        size = len(self.payload)
        fields = self._asdict() | {"payload": payload, "size": size}
        return bytes(joined(_wire.encode_frame(**fields)))


numbers = st.integers(0, 2**64 - 1)
frames = st.builds(
    Sent,
    kind=st.sampled_from(Kind),
    id=numbers,
    rows=numbers,
    joined=st.booleans(),
    shared=st.booleans(),
    schema=st.binary(max_size=40),
    payload=st.binary(max_size=60)
    | st.integers(SCRATCH - 100, SCRATCH + 100).map(lambda size: (b"0123456789" * size)[:size])
    | st.integers(2 * SCRATCH, 3 * SCRATCH).map(lambda size: (b"0123456" * size)[:size]),
)


def feed(decoder: FrameDecoder, data: bytes) -> list[Frame]:
    """Give bytes to a decoder, in pieces where its buffer is smaller."""
    received: list[Frame] = []
    view = memoryview(data)
    while view:
        buffer = decoder.buffer
        assert len(buffer) > 0
        count = min(len(buffer), len(view))
        buffer[:count] = view[:count]
        received += decoder.received(count)
        view = view[count:]
    return received


def as_sent(received: list[Frame]) -> list[Sent]:
    return [Sent(*frame[:-1], payload=bytes(frame.payload)) for frame in received]


@on_busy_machines
@given(st.lists(frames, max_size=4), st.lists(st.integers(1, SCRATCH), max_size=20))
def test_frames_in_pieces_of_any_size_are_the_frames_that_were_sent(
    expected: list[Sent], sizes: list[int]
) -> None:
    data = b"".join(frame.encoded() for frame in expected)
    decoder = FrameDecoder()
    received: list[Frame] = []
    for size in sizes:
        received += feed(decoder, data[:size])
        data = data[size:]
    received += feed(decoder, data)
    assert as_sent(received) == expected
    assert decoder.between_frames


@pytest.mark.parametrize("payload", [b"", b"payload", bytes(SCRATCH), bytes(SCRATCH + 1)])
def test_a_frame_cut_at_every_byte_near_its_ends_is_the_frame_that_was_sent(payload: bytes) -> None:
    expected = [
        Sent(Kind.ANSWER, 7, 2, True, True, b"schema  ", payload),
        Sent(Kind.STOP, 8, 0, False, False, b"", b""),
    ]
    data = b"".join(frame.encoded() for frame in expected)
    near = (0, _wire.HEADER.size, SCRATCH, len(payload), len(data))
    cuts = {cut for end in near for cut in range(end - 48, end + 48) if 0 <= cut <= len(data)}
    for cut in cuts:
        decoder = FrameDecoder()
        received = feed(decoder, data[:cut])
        assert decoder.between_frames == (cut in (0, len(data) - _wire.HEADER.size, len(data)))
        received += feed(decoder, data[cut:])
        assert as_sent(received) == expected, cut
        assert decoder.between_frames


@on_busy_machines
@given(frames)
def test_a_frame_that_came_whole_is_the_frame_that_was_sent(expected: Sent) -> None:
    data = bytearray(expected.encoded())
    assert as_sent([_wire.decode_frame(memoryview(data))]) == [expected]
    for other in (data[:-1], data + b"x", b"", b"x" * len(data)):
        with pytest.raises(WireError):
            _wire.decode_frame(memoryview(other))


def test_a_frame_that_comes_byte_by_byte_is_the_frame_that_was_sent() -> None:
    expected = [
        Sent(Kind.PREDICT, n, n, False, False, b"12345678" * n, bytes(range(n))) for n in range(20)
    ]
    decoder = FrameDecoder()
    received: list[Frame] = []
    for byte in b"".join(frame.encoded() for frame in expected):
        received += feed(decoder, bytes([byte]))
    assert as_sent(received) == expected


def test_many_frames_come_out_of_one_read() -> None:
    expected = [Sent(Kind.ANSWER, id, 1, False, False, b"", b"12345678") for id in range(1000)]
    data = b"".join(frame.encoded() for frame in expected)
    assert len(data) < SCRATCH
    decoder = FrameDecoder()
    decoder.buffer[: len(data)] = data
    assert as_sent(decoder.received(len(data))) == expected


def test_a_received_frame_is_not_changed_by_later_ones() -> None:
    decoder = FrameDecoder()
    first, second = feed(
        decoder, Sent(Kind.ANSWER, 1, 1, False, False, b"", b"first").encoded() * 2
    )
    first.payload[:] = b"other"
    assert bytes(second.payload) == b"first"
    feed(decoder, Sent(Kind.ANSWER, 2, 1, False, False, b"", b"later").encoded() * 5)
    assert bytes(first.payload) == b"other"
    assert bytes(second.payload) == b"first"


def test_a_large_frame_is_received_straight_into_its_own_memory() -> None:
    data = Sent(Kind.ANSWER, 1, 1, False, False, b"schema  ", bytes(range(250)) * 4000).encoded()
    decoder = FrameDecoder()
    assert feed(decoder, data[:SCRATCH]) == []
    buffer = decoder.buffer
    assert len(buffer) == len(data) - SCRATCH
    buffer[:] = data[SCRATCH:]
    (frame,) = decoder.received(len(buffer))
    assert np.shares_memory(np.frombuffer(frame.payload, "u1"), np.frombuffer(buffer, "u1"))


def test_a_message_arrives() -> None:
    message = {"a": [1, "b"], "c": bytes(100_000)}
    (frame,) = feed(FrameDecoder(), bytes(joined(_wire.encode_message(Kind.READY, 5, message))))
    assert (frame.kind, frame.id) == (Kind.READY, 5)
    assert pickle.loads(frame.payload) == message


def test_what_is_larger_than_a_frame_can_be_is_not_sent() -> None:
    with pytest.raises(WireError, match="send fewer rows in one request"):
        _wire.encode_frame(Kind.PREDICT, size=_wire.MAX_PAYLOAD + 1)
    with pytest.raises(WireError, match="send fewer rows in one request"):
        _wire.encode_frame(Kind.PREDICT, schema=bytes(_wire.MAX_SCHEMA + 1))


# --- garbage -----------------------------------------------------------------------


def header(*, kind: int = 2, flags: int = 0, schema: int = 0, payload: int = 0) -> bytes:
    return _wire.HEADER.pack(_wire.MAGIC, kind, flags, schema, 0, 0, payload)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(payload=_wire.MAX_PAYLOAD + 1), "impossible size"),
        (header(payload=2**64 - 1), "impossible size"),
        (header(schema=_wire.MAX_SCHEMA + 1), "impossible size"),
        (header(kind=0), "not the beginning of a frame"),
        (header(kind=99), "not the beginning of a frame"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n", "not the beginning of a frame"),
        (b"XX" + header()[2:], "not the beginning of a frame"),
        (bytes(40), "not the beginning of a frame"),
    ],
)
def test_what_cannot_be_a_frame_is_refused_before_memory_is_taken(
    data: bytes, message: str
) -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=message):
            feed(decoder, data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_does_not_fit_into_memory_is_an_error_of_the_wire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(WireError, match="does not fit into memory"):
        feed(FrameDecoder(), header(payload=1 << 30))


@on_busy_machines
@given(st.binary(max_size=300), st.integers(0, 300), st.lists(frames, max_size=2))
def test_garbage_gives_frames_or_an_error_of_the_wire(
    garbage: bytes, at: int, around: list[Sent]
) -> None:
    data = b"".join(frame.encoded() for frame in around)
    data = data[:at] + garbage + data[at:]
    decoder = FrameDecoder()
    with contextlib.suppress(WireError):
        feed(decoder, data)


@on_busy_machines
@given(frames, st.data())
def test_one_flipped_byte_gives_frames_or_an_error_of_the_wire(
    frame: Sent, data: st.DataObject
) -> None:
    encoded = bytearray(frame.encoded())
    position = data.draw(st.integers(0, min(len(encoded), 80) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    size = int.from_bytes(encoded[24:32], "little") + int.from_bytes(encoded[4:8], "little")
    if size > 1 << 28 and size <= _wire.MAX_PAYLOAD:
        return  # a possible size, which would be waited for in as much memory
    with contextlib.suppress(WireError):
        feed(FrameDecoder(), bytes(encoded))


# --- pickles -----------------------------------------------------------------------


def test_a_pickle_is_not_read_where_that_would_import_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "predictpool_test_foreign"
    (tmp_path / f"{name}.py").write_text("class Thing: ...\nclass Trouble(Exception): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    program = f"import pickle, sys, {name} as m; sys.stdout.buffer.write(pickle.dumps(MADE))"
    for made in ("m.Thing()", "[m.Thing]", "m.Trouble('no')"):
        data = subprocess.run(
            [sys.executable, "-c", program.replace("MADE", made)],
            check=True,
            capture_output=True,
            env={"PYTHONPATH": str(tmp_path)},
        ).stdout
        with pytest.raises(_wire.ForeignType, match=name):
            _wire.loads_cautiously(data)
        assert name not in sys.modules
        assert pickle.loads(data) is not None  # it could have been imported
        del sys.modules[name]


def test_a_pickle_is_read_where_its_modules_are_imported() -> None:
    for value in (ValueError("no"), deque([1]), [np.float32(1)], {"a": {1}}):
        again = _wire.loads_cautiously(pickle.dumps(value, protocol=5))
        assert type(again) is type(value)
        assert repr(again) == repr(value)
