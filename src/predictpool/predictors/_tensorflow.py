"""What the predictors of TensorFlow have in common; in workers, so TensorFlow may be imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from predictpool._columns import Array
from predictpool._devices import Device


def require_tensorflow(
    modules: Iterable[str] = ("tensorflow",),
    *,
    install: str = 'pip install "predictpool[tensorflow]"',
) -> None:
    """Import TensorFlow, or modules that need it, in this order.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed; or something else, which is said as
            it is.
    """
    try:
        for module in modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise ModuleNotFoundError(
            f"TensorFlow is not installed: {install}", name=error.name
        ) from error


def limit_threads(device: Device) -> None:
    """Give TensorFlow as many threads as there are cores for it, before it runs anything.

    More of them on a pinned worker only get into each other's way. On a device without cores
    it keeps those that it has: they are the application's, which may have used it already.
    """
    import tensorflow as tf

    if device.cores:
        tf.config.threading.set_intra_op_parallelism_threads(device.threads)
        tf.config.threading.set_inter_op_parallelism_threads(device.threads)


def empty_like(tensor: Any) -> Array:
    """Return no rows of what a symbolic tensor stands for; axes that vary have no length."""
    shape = tensor.shape[1:] if tensor.shape.rank else ()
    return np.empty((0, *(axis or 0 for axis in shape)), tensor.dtype.as_numpy_dtype)
