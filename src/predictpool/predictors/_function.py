"""Any Python callable as a predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from predictpool._devices import Device
from predictpool._features._signature import Signature, SignatureSource

Outputs = TypeVar("Outputs")


class FunctionPredictor(Generic[Outputs]):
    """A predictor made of a function; no TensorFlow anywhere.

    Args:
        load: called once in each worker; returns the function that predicts. The
            function gets the features as arrays, the first axis the row. They cannot be
            written to, and are valid until it returns: copy what you keep.
        row_wise: set it where row *i* of what the function returns depends on row *i* of
            the features alone; the rows of several requests then share one call.
            Otherwise every request is a call of its own.
        signature: name → ``(dtype, row shape[, default])``, or one such tuple for an
            unnamed array; features are checked against it and brought to its dtypes.
            Without one the function gets whatever numpy makes of the features.
        preload: modules that the template process imports before it forks workers; they
            must not start threads.
    """

    def __init__(
        self,
        load: Callable[[], Callable[[Any], Outputs]],
        *,
        row_wise: bool = False,
        signature: Any = None,
        preload: tuple[str, ...] = (),
    ) -> None:
        if not callable(load):
            raise TypeError(
                f"load is {load!r}, expected a function that returns the predicting one"
            )
        self.preload: tuple[str, ...] = tuple(preload)
        self.row_wise: bool = row_wise
        self.signature: SignatureSource = (
            None if signature is None else Signature.declared(signature)
        )
        self._load = load
        self._function: Callable[[Any], Outputs] | None = None

    def load(self, device: Device) -> None:
        """Call ``load`` in the worker."""
        function = self._load()
        if not callable(function):
            raise TypeError(
                f"load() returned {function!r}, expected a function that predicts: "
                "FunctionPredictor(lambda: model.predict), not FunctionPredictor(model.predict)"
            )
        self._function = function

    def predict(self, features: Any) -> Outputs:
        """Call the function with the features."""
        if self._function is None:
            raise RuntimeError("predict() before load()")
        return self._function(features)

    def close(self) -> None:
        """Forget the function."""
        self._function = None
