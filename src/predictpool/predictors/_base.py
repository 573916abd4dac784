"""What the pool asks of a predictor."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from predictpool._devices import Device
from predictpool._features._signature import SignatureSource

Outputs_co = TypeVar("Outputs_co", covariant=True)


@runtime_checkable
class Predictor(Protocol[Outputs_co]):
    """The recipe that a worker follows: what to load, and how to predict.

    A predictor is made in the application, travels to each worker by cloudpickle before
    it is loaded, and is loaded there once. Its methods are called in one thread, one at
    a time.

    Attributes:
        preload: modules that the template process imports before it forks workers, for
            example ``("tensorflow",)``; ``()`` for none.
        row_wise: whether row *i* of the outputs depends on row *i* of the features
            alone, so that the rows of several requests may share one call.
        signature: the features it takes. ``None``: whatever it is given. ``"infer"``:
            whatever the first request has, from then on.  May be set by `load`.

    It may also have an attribute ``source``, a `ModelSource` that `load` sets, which says
    where newer versions of its model come from; without one it cannot be watched.
    """

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that the template process imports."""

    @property
    def row_wise(self) -> bool:
        """Whether rows of several requests may share one call."""

    @property
    def signature(self) -> SignatureSource:
        """The features it takes."""

    def load(self, device: Device) -> None:
        """Load the model, in the worker. Whatever it raises ends the worker's start."""

    def predict(self, features: Any) -> Outputs_co:
        """Run the model.

        Args:
            features: a mapping of name to array, or one array; the first axis is the
                row. With a signature they have its dtypes and shapes. The arrays cannot
                be written to and are valid until this returns: copy what you keep, their
                memory gets the next request.

        Returns:
            a mapping of name to array or one array, the first axis the same rows in the
            same order. A predictor that is not `row_wise` may return anything.
        """

    def close(self) -> None:
        """Let go of the model, in the worker, when the pool ends it in good order."""
