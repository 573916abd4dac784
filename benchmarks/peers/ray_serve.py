"""Ray Serve: two replicas behind its proxy, JSON, its shortest window; and the client's half."""

import signal
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.load import Ask
from benchmarks.models import Model
from benchmarks.peers import held, ray_actors, served
from benchmarks.peers.held import Columns

SHORTEST_WINDOW = 0.001  # seconds
# More than there are callers: a replica takes 5 by default, which no batch of 64 can come of.
ONGOING = 512
# It would write a line for each request.
LOGGING: dict[str, Any] = {"enable_access_log": False}


@serve.deployment(
    num_replicas=ray_actors.ACTORS, max_ongoing_requests=ONGOING, logging_config=LOGGING
)
class Census:
    """Answers requests in batches."""

    def __init__(self) -> None:
        self._held = held.Held()

    @serve.batch(max_batch_size=held.MAX_BATCH_SIZE, batch_wait_timeout_s=SHORTEST_WINDOW)
    async def answer(self, requests: list[Columns]) -> list[Columns]:
        """Return the outputs of each request."""
        return self._held.predict_requests(requests)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        answer: Any = self.answer(orjson.loads(await request.body()))
        return Response(orjson.dumps(await answer), media_type="application/json")


def main() -> None:
    """Serve."""
    model = held.model()
    with ray_actors.running(held.told(model, batching=True)):
        serve.start(
            http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=LOGGING
        )
        serve.run(Census.bind())  # type: ignore[attr-defined]
        signal.sigwait([signal.SIGTERM])
        serve.shutdown()


def opened(model: Model, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(["-m", __name__, str(port)], "/", port, held.told(model, batching))
    return served.opened(service, model.rows(1)[0])


if __name__ == "__main__":
    # Before Ray starts its threads: each would have to block the signal, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    main()
