"""The one model that is served, as both protocols see it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import dataclass
from typing import Any, ClassVar

from predictpool import (
    InvalidFeatures,
    PoolClosed,
    PoolTimeout,
    PredictionError,
    PredictorPool,
    TooManyRequests,
    WorkerError,
)
from predictpool._columns import Array
from predictpool._command import describe
from predictpool._worker import one_line
from predictpool.serve._http import ClientGone, Paths, Receive, Refusal
from predictpool.serve._tensors import Tensor, features_of, inputs_of, named_arrays

logger = logging.getLogger("predictpool")

_RETRY = [(b"retry-after", b"1")]


@dataclass(frozen=True)
class Model:
    """A pool with a name.

    Attributes:
        outputs: what it returns; None where it could not be asked.
        VERSION: its only one: a pool has the newest, and never two.
    """

    VERSION: ClassVar = "1"

    name: str
    pool: PredictorPool[Any]
    outputs: tuple[Tensor, ...] | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...] | None:
        """What it takes; None where nobody knows."""
        signature = self.pool.signature
        return None if signature is None else inputs_of(signature)

    @property
    def ready(self) -> bool:
        """Whether a worker can answer."""
        return self.pool.statistics().ready > 0

    def paths(self, root: str, operations: Paths) -> Paths:
        """Return what is below ``/models/NAME``, and the same below its version's path."""
        path = f"{root}/models/{self.name}"
        return {
            below + rest: done
            for below in (path, f"{path}/versions/{self.VERSION}")
            for rest, done in operations.items()
        }

    async def infer(self, inputs: dict[str, Array], receive: Receive) -> dict[str, Array]:
        """Return the outputs for inputs by name; see `predict`."""
        return await self.predict(features_of(inputs, self.pool.signature), receive)

    async def predict(self, features: Any, receive: Receive) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            Refusal: there are none, and the reason.
            ClientGone: the client went away; the prediction was cancelled.
        """
        caller = asyncio.current_task()
        assert caller is not None
        gone = asyncio.ensure_future(_disconnected(receive))
        waits = True

        def cancel(_: object) -> None:
            if waits:  # it may be called when the answer has just come
                caller.cancel()

        gone.add_done_callback(cancel)
        try:
            return named_arrays(await self.pool.predict(features))
        except asyncio.CancelledError:
            if not gone.done():
                raise  # it is the server that ends
            caller.uncancel()
            raise ClientGone from None
        except Refusal:
            raise
        except Exception as error:  # a model can raise anything
            raise _refusal(error) from error
        finally:
            waits = False
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> Refusal:
    """Return what a client is told when the pool has raised."""
    if isinstance(error, InvalidFeatures):
        return Refusal(400, str(error))
    if isinstance(error, TooManyRequests):
        return Refusal(429, str(error), _RETRY)
    if isinstance(error, PoolTimeout):
        return Refusal(504, str(error))
    if isinstance(error, PoolClosed | WorkerError):
        return Refusal(503, one_line(str(error)), _RETRY)
    # The traceback is for who runs the server.
    logger.warning("%s", "".join(traceback.format_exception_only(error)).rstrip())
    said = one_line(str(error)) if isinstance(error, PredictionError) else describe(error)
    return Refusal(500, f"the prediction failed: {said}")
