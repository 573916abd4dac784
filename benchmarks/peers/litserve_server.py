"""LitServe: two workers, JSON, its shortest window; and the client's half."""

import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

import litserve

from benchmarks.load import Ask
from benchmarks.models import Model
from benchmarks.peers import held, served
from benchmarks.peers.held import Columns

SHORTEST_WINDOW = 0.001  # seconds


class Census(litserve.LitAPI):
    """Answers one request, or a batch."""

    def setup(self, device: Any) -> None:
        """Load the model."""
        held_ = held.Held()
        self._answer: Any = held_.predict_requests if held.batching() else held_.predict

    def predict(self, inputs: Any) -> Any:
        """Return the outputs: of a request, or of a list of them."""
        return self._answer(inputs)

    def batch(self, inputs: list[Columns]) -> list[Columns]:
        """Leave requests as they are."""
        return inputs

    def unbatch(self, output: list[Columns]) -> list[Columns]:
        """Leave answers as they are."""
        return output


def main() -> None:
    """Serve."""
    # Without a window its workers look for requests without a pause, and take the cores for that.
    batches = {"max_batch_size": held.MAX_BATCH_SIZE, "batch_timeout": SHORTEST_WINDOW}
    api = Census(**batches) if held.batching() else Census()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )


def opened(model: Model, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Serve, and ask over HTTP."""
    port = served.free_port()
    service = served.Service(
        ["-m", __name__, str(port)], "/predict", port, held.told(model, batching)
    )
    return served.opened(service, model.rows(1)[0])


if __name__ == "__main__":
    main()
