"""Ray: two actors that are asked in turn, by a driver on asyncio.

There is no server and no HTTP: arguments and answers are pickled, arrays out of band, and large
ones go through Ray's shared memory. `opened` is for the throughput of the model, `opened_large` for
``python -m benchmarks large``: one large array to an actor and a number back, and the reverse.
"""

import importlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import ray

from benchmarks.load import Ask
from benchmarks.models import Arrays, Model
from benchmarks.peers import held

ACTORS = 2
_OBJECT_STORE = 2 << 30  # bytes; an array of 256 MB has to fit in while others are let go


class Census:
    """Holds the model."""

    def __init__(self) -> None:
        self._held = held.Held()

    def predict(self, features: Arrays) -> Arrays:
        """Return the outputs of one request."""
        return self._held.predict_arrays(features)


class Ends:
    """The trivial predictor of ``large``."""

    def __init__(self) -> None:
        self._ends = importlib.import_module("benchmarks.trivial").ends

    def ends(self, values: Any) -> Any:
        """Look at a large array; it lies in Ray's shared memory and is not copied."""
        return self._ends(values)


@contextmanager
def running(variables: dict[str, str]) -> Iterator[None]:
    """Have Ray's processes on this machine, with two cores; workers get these variables."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it would leave a token at home
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=ACTORS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=_OBJECT_STORE,
            runtime_env={"env_vars": variables},
            _temp_dir=directory,
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
    with running(held.told(model, batching)):
        actors = [ray.remote(num_cpus=1)(Census).remote() for _ in range(ACTORS)]
        example = model.rows(1)[0]
        for actor in actors:
            await actor.predict.remote(example)
        ask_next = itertools.cycle([actor.predict.remote for actor in actors]).__next__

        async def ask(features: Arrays) -> Arrays:
            answer: Arrays = await ask_next()(features)
            return answer

        yield ask


@asynccontextmanager
async def opened_large() -> AsyncIterator[Callable[[Any], Awaitable[Any]]]:
    """Start one actor, yield what has it look at an array, and end it."""
    with running({}):
        actor = ray.remote(num_cpus=1)(Ends).remote()
        yield actor.ends.remote
