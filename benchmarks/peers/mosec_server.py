"""mosec: two workers, msgpack, its shortest window; and the client's half."""

from contextlib import AbstractAsyncContextManager

import msgpack
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held, served
from benchmarks.peers.served import Message

MSGPACK = {"Content-Type": "application/msgpack"}


class Census(MsgpackMixin, Worker):
    """Answers one request, or a batch."""

    def __init__(self) -> None:
        super().__init__()
        held_ = held.Held()
        self._answer = held_.predict_requests if held.batching() else held_.predict

    def forward(self, data):  # type: ignore[no-untyped-def]
        """Return the outputs: of a request, or of a list of them."""
        return self._answer(data)


def main() -> None:
    """Serve."""
    server = Server()
    if held.batching():
        server.append_worker(Census, num=2, max_batch_size=held.MAX_BATCH_SIZE, max_wait_time=1)
    else:
        server.append_worker(Census, num=2)
    server.run()


def encode(features: Arrays) -> Message:
    """Return a request."""
    return msgpack.packb(held.columns_of(features)), MSGPACK


def decode(message: Message) -> Arrays:
    """Return an answer's arrays."""
    return held.arrays_of(msgpack.unpackb(message[0]))


def opened(model: Model, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(
        [
            "-m",
            __name__,
            "--address",
            "127.0.0.1",
            "--port",
            str(port),
            "--log-level",
            "warning",
            "--timeout",
            "30000",
        ],
        "/inference",
        port,
        held.told(model, batching),
        encode,
        decode,
    )
    return served.opened(service, model.rows(1)[0])


if __name__ == "__main__":
    main()
