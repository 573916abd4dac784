"""TensorFlow predictions, fast and safe inside async applications."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from predictpool._devices import Device as Device
    from predictpool._errors import BrokenWorkerError as BrokenWorkerError
    from predictpool._errors import InvalidFeatures as InvalidFeatures
    from predictpool._errors import PoolClosed as PoolClosed
    from predictpool._errors import PoolTimeout as PoolTimeout
    from predictpool._errors import PredictionError as PredictionError
    from predictpool._errors import PredictorPoolError as PredictorPoolError
    from predictpool._errors import TooManyRequests as TooManyRequests
    from predictpool._errors import WorkerError as WorkerError
    from predictpool._errors import WorkerStartError as WorkerStartError
    from predictpool._features._signature import Signature as Signature
    from predictpool._features._spec import FeatureSpec as FeatureSpec
    from predictpool._hooks import BatchEnded as BatchEnded
    from predictpool._hooks import BatchStarted as BatchStarted
    from predictpool._hooks import Hooks as Hooks
    from predictpool._hooks import PoolOpened as PoolOpened
    from predictpool._hooks import RequestEnded as RequestEnded
    from predictpool._hooks import RequestSubmitted as RequestSubmitted
    from predictpool._hooks import WorkerLost as WorkerLost
    from predictpool._hooks import WorkerReady as WorkerReady
    from predictpool._local_launcher import LocalLauncher as LocalLauncher
    from predictpool._pool import PredictorPool as PredictorPool
    from predictpool._ray_launcher import RayLauncher as RayLauncher
    from predictpool._statistics import PoolStatistics as PoolStatistics
    from predictpool._statistics import WorkerInfo as WorkerInfo
    from predictpool.predictors._base import Predictor as Predictor
    from predictpool.predictors._estimator import EstimatorPredictor as EstimatorPredictor
    from predictpool.predictors._function import FunctionPredictor as FunctionPredictor
    from predictpool.predictors._keras import KerasPredictor as KerasPredictor
    from predictpool.predictors._saved_model import SavedModelPredictor as SavedModelPredictor
    from predictpool.predictors._source import ModelSource as ModelSource

# Resolved on first use: a worker imports this package too, and needs no event loop.
_MODULES = {
    "BatchEnded": "_hooks",
    "BatchStarted": "_hooks",
    "BrokenWorkerError": "_errors",
    "Device": "_devices",
    "EstimatorPredictor": "predictors._estimator",
    "FeatureSpec": "_features._spec",
    "FunctionPredictor": "predictors._function",
    "Hooks": "_hooks",
    "InvalidFeatures": "_errors",
    "KerasPredictor": "predictors._keras",
    "LocalLauncher": "_local_launcher",
    "ModelSource": "predictors._source",
    "PoolClosed": "_errors",
    "PoolOpened": "_hooks",
    "PoolStatistics": "_statistics",
    "PoolTimeout": "_errors",
    "PredictionError": "_errors",
    "Predictor": "predictors._base",
    "PredictorPool": "_pool",
    "PredictorPoolError": "_errors",
    "RayLauncher": "_ray_launcher",
    "RequestEnded": "_hooks",
    "RequestSubmitted": "_hooks",
    "SavedModelPredictor": "predictors._saved_model",
    "Signature": "_features._signature",
    "TooManyRequests": "_errors",
    "WorkerError": "_errors",
    "WorkerInfo": "_statistics",
    "WorkerLost": "_hooks",
    "WorkerReady": "_hooks",
    "WorkerStartError": "_errors",
}

__all__ = [
    "BatchEnded",
    "BatchStarted",
    "BrokenWorkerError",
    "Device",
    "EstimatorPredictor",
    "FeatureSpec",
    "FunctionPredictor",
    "Hooks",
    "InvalidFeatures",
    "KerasPredictor",
    "LocalLauncher",
    "ModelSource",
    "PoolClosed",
    "PoolOpened",
    "PoolStatistics",
    "PoolTimeout",
    "PredictionError",
    "Predictor",
    "PredictorPool",
    "PredictorPoolError",
    "RayLauncher",
    "RequestEnded",
    "RequestSubmitted",
    "SavedModelPredictor",
    "Signature",
    "TooManyRequests",
    "WorkerError",
    "WorkerInfo",
    "WorkerLost",
    "WorkerReady",
    "WorkerStartError",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
