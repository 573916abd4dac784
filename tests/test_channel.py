"""The application's end of a worker's socket takes whatever bytes come."""

from __future__ import annotations

import pickle
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import anyio
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictpool import FunctionPredictor, PredictorPool, _wire
from predictpool._backend import Cancellable, current_backend
from predictpool._channel import Channel
from predictpool._wire import Frame, Kind
from tests.pools import ONE_LOOP, until
from tests.stage import Stage


class Fed:
    """A real channel, whose worker is the test."""

    def __init__(self, backend: Any) -> None:
        self.frames: list[Frame] = []
        self.ends: list[str] = []
        ours, self.worker = socket.socketpair()
        self.worker.setblocking(False)
        self.channel = Channel(backend, ours, self.frames.append, self.ends.append)

    def close(self) -> None:
        """Close both ends."""
        self.channel.close()
        self.worker.close()


class ByHand:
    """An event loop that the test turns."""

    def __init__(self) -> None:
        self.callback: Callable[[], None] | None = None

    def on_readable(self, descriptor: int, callback: Callable[[], None]) -> Cancellable:
        """Keep the callback; the test is the watch."""
        del descriptor
        self.callback = callback
        return self

    def cancel(self) -> None:
        """Watch no longer."""
        self.callback = None


def header(*, kind: int = Kind.ANSWER, schema: int = 0, payload: int = 0) -> bytes:
    return _wire.HEADER.pack(_wire.MAGIC, kind, 0, schema, 1, 1, payload)


@settings(deadline=None)  # how long an example takes is no promise
@given(
    st.lists(
        st.binary(max_size=200)
        | st.builds(
            header,
            kind=st.integers(0, 255),
            schema=st.integers(0, 100) | st.integers(0, 2**32 - 1),
            payload=st.integers(0, 100) | st.integers(0, 1 << 24),
        ),
        max_size=8,
    )
)
def test_a_channel_ends_once_and_with_a_reason_whatever_it_is_fed(pieces: list[bytes]) -> None:
    hand = ByHand()
    fed = Fed(hand)
    try:
        for piece in pieces:
            if hand.callback is not None:
                fed.worker.send(piece)
                hand.callback()
        broken = hand.callback is None
        fed.worker.close()
        if not broken:
            assert hand.callback is not None
            hand.callback()
        assert hand.callback is None
        (why,) = fed.ends
        assert bool(why) == broken  # "" is the end of a socket, and everything else is told
        fed.channel.send([b"nobody reads it"])
    finally:
        fed.close()


@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_channel_takes_garbage_on_every_loop_and_no_memory_for_what_is_only_promised() -> (
    None
):
    def fail(error: Exception) -> None:
        raise AssertionError from error

    backend = current_backend(fail)
    chance = random.Random(0)
    promises = [1 << 17, 1 << 30, 1 << 33, _wire.MAX_PAYLOAD, _wire.MAX_PAYLOAD + 1]
    kinds = [header(payload=size) + bytes(100_000) for size in promises]
    kinds += [header(schema=_wire.MAX_SCHEMA, payload=1) + b"[" * 100_000]
    kinds += [chance.randbytes(chance.randrange(1, 3000)) for _ in range(30)]
    kinds += [header()[:cut] for cut in range(0, _wire.HEADER.size, 5)]
    before: int = psutil.Process().memory_info().rss
    for garbage in kinds:
        fed = Fed(backend)
        fed.worker.send(garbage)
        fed.worker.close()
        await until(lambda fed=fed: fed.ends)  # type: ignore[misc]
        assert len(fed.ends) == 1
        assert not fed.frames
        fed.close()
    assert psutil.Process().memory_info().rss < before + 30_000_000


# --- real workers ------------------------------------------------------------------


def pickled(kind: Kind, message: object) -> bytes:
    return b"".join(_wire.encode_message(kind, 1, message))


def told_as(kind: Kind, payload: bytes) -> bytes:
    return b"".join(_wire.encode_frame(kind, 1, payload=(payload,), size=len(payload)))


MESSAGES = {
    "random": random.Random(1).randbytes(1000),
    "no pickle": told_as(Kind.FAILURE, b"no pickle"),
    "a pickle of nothing": told_as(Kind.READY, b""),
    "a failure that is none": pickled(Kind.FAILURE, 5),
    "a failed start that is none": pickled(Kind.START_FAILED, None),
    "ready again and not": pickled(Kind.READY, "ready"),
    "a start": pickled(Kind.START, "start"),
    "a request": told_as(Kind.PREDICT, pickle.dumps(1)),
    "a stop": told_as(Kind.STOP, b""),
}


@pytest.mark.anyio
@pytest.mark.faults
@ONE_LOOP
@pytest.mark.usefixtures("never_blocking", "nothing_left", "mistakes")
@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
async def test_a_worker_that_talks_nonsense_is_replaced_and_its_request_answered(
    stage: Stage, message: bytes
) -> None:
    folder = stage.door.folder

    def load() -> Callable[[Any], Any]:
        from predictpool import _worker

        send = _worker._send
        nonsense: list[Any] = []

        def send_nonsense(connection: socket.socket, buffers: Any) -> None:
            send(connection, nonsense or buffers)
            if nonsense:
                time.sleep(1000)  # it does not end by itself

        _worker._send = send_nonsense

        def predict(x: Any) -> Any:
            try:
                (folder / "first").mkdir()
            except FileExistsError:
                return x * 2
            nonsense.append(message)
            return x

        return predict

    async with PredictorPool(FunctionPredictor(load), workers=1) as pool:
        with anyio.fail_after(10):
            assert (await pool.predict([1.0])).tolist() == [2.0]
        assert pool.statistics().restarts == 1
