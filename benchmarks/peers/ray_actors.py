"""Ray: two actors that are asked in turn, by a driver on asyncio.

There is no server and no HTTP: arguments and answers are pickled, arrays out of band, and large ones
go through Ray's shared memory. `opened` is for the throughput of the model; `serve_large` is a
contender, see `benchmarks.harness.Contender`, for one large array in and one number out.
"""

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import ray

from benchmarks.harness import Orders
from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held

ACTORS = 2
_OBJECT_STORE = 1 << 30  # bytes: 64 copies of 16 MB


@ray.remote(num_cpus=1)
class Census:
    """Holds the model."""

    def __init__(self) -> None:
        self._held = held.Held()

    def predict(self, features: Arrays) -> Arrays:
        """Return the outputs of one request."""
        return self._held.predict_arrays(features)


@ray.remote(num_cpus=1)
class First:
    """The trivial predictor."""

    def predict(self, array: Any) -> float:
        """Return the first number."""
        return float(array.flat[0])


@contextmanager
def _ray(variables: dict[str, str]) -> Iterator[None]:
    ray.init(
        num_cpus=ACTORS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=_OBJECT_STORE,
        runtime_env={"env_vars": variables},
    )
    try:
        yield
    finally:
        ray.shutdown()


@asynccontextmanager
async def opened(model: Model, batching: bool) -> AsyncIterator[Ask]:
    """Start the actors, yield what asks them, and end them.

    Args:
        batching: Ray's actors have none.
    """
    assert not batching
    with _ray(held.told(model, batching)):
        actors = [Census.remote() for _ in range(ACTORS)]
        example = model.rows(1)[0]
        for actor in actors:
            await actor.predict.remote(example)
        ask_next = itertools.cycle([actor.predict.remote for actor in actors]).__next__

        async def ask(features: Arrays) -> Arrays:
            answer: Arrays = await ask_next()(features)
            return answer

        yield ask
