"""Runs an example of a web application with a pool that a test can hold and break.

``python -m tests.embedded FILE`` or ``... -m MODULE ARGUMENT...``: as Python runs it, and with the
example's own predictor in its own pool; but the ages below do what a test needs, one worker
and one waiting request are all there is, and a request runs alone, and once.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any, TypeVar

import predictpool
from predictpool import Device, Predictor, PredictorPool
from tests.stage import StageDoor

OutputsT = TypeVar("OutputsT")

HELD = -1  # until the test lets it go
KILLED = -2
BROKEN = -3
LATE = -4  # has hardly any time
CLOSED = -5  # comes when the pool has been closed

SECRET = "what the model says is not for clients"
CLOSED_ITSELF = "the application has closed its pool"


class StagedPredictor:
    """A predictor with a stage, whose folder is in ``STAGE``.

    Where that has a file ``slow`` a worker is held while it loads, and with ``wrong`` it fails.
    """

    def __init__(self, predictor: Predictor[Any]) -> None:
        self.preload = predictor.preload
        self.row_wise = False
        self.signature = predictor.signature
        self._predictor = predictor

    def load(self, device: Device) -> None:
        """Load the example's predictor."""
        self._door = StageDoor(Path(os.environ["STAGE"]))
        if (self._door.folder / "slow").exists():
            self._door.hold("loading")
        if (self._door.folder / "wrong").exists():
            raise RuntimeError(SECRET)
        self._predictor.load(device)

    def predict(self, features: Any) -> Any:
        """Do what the first age stands for."""
        age = features["age"][0]
        if age == HELD:
            self._door.hold("predicting")
        elif age == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        elif age == BROKEN:
            raise RuntimeError(SECRET)
        return self._predictor.predict(features)

    def close(self) -> None:
        """Let go of the example's predictor."""
        self._predictor.close()


class StagedPool(PredictorPool[OutputsT]):
    """What an example gets when it makes a pool."""

    def __init__(self, predictor: Predictor[OutputsT], **options: Any) -> None:
        options |= {"workers": 1, "max_waiting": 1, "retries": 0, "timeout": None}
        super().__init__(StagedPredictor(predictor), **options)

    async def predict(self, features: Any, **options: Any) -> OutputsT:
        """Predict; some ages are about the pool."""
        ages = features.get("age", [0])
        if ages == [LATE]:
            options["timeout"] = 0.01
        elif ages == [CLOSED]:
            await self.aclose()
        return await super().predict(features, **options)

    async def aclose(self) -> None:
        """Close, and log that it was done."""
        await super().aclose()
        os.write(2, f"{CLOSED_ITSELF}\n".encode())


if __name__ == "__main__":
    predictpool.PredictorPool = StagedPool  # type: ignore[misc]
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
