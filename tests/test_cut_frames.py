"""A worker may die at any byte of a frame: what was cut runs again; nobody is answered wrongly."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import numpy as np
import pytest

from predictpool import FunctionPredictor, PredictorPool, _columns, _wire
from predictpool import _slot as slot_module
from tests.misbehaviour import cutting_replies, cutting_requests, request, sums
from tests.pools import POOL_TEST, adds_up, until
from tests.stage import Stage

pytestmark = [*POOL_TEST, pytest.mark.faults]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delay between restarts, and no slot is given up."""
    real = slot_module.Backoff
    monkeypatch.setattr(slot_module, "Backoff", lambda: real(first=0.0, longest=0.0, tries=1000))


def length_of_request() -> int:
    """How many bytes the frame of one request has."""
    schema, parts = _columns.encode_features({"": request(0.0)}, False, pickle.dumps)
    return _wire.HEADER.size + len(schema.blob) + sum(map(len, parts))


def length_of_reply() -> int:
    """How many bytes the frame of one answer has."""
    encoded = _columns.OutputEncoder().encode(sums(request(0.0)), 1)
    assert encoded is not None
    schema, parts = encoded
    return _wire.HEADER.size + len(schema.blob) + sum(map(len, parts))


async def cut_all(predictor: FunctionPredictor[Any], cuts: Sequence[int]) -> None:
    """Let a worker die of each cut, with neighbours in the same and in another worker."""
    async with PredictorPool(predictor, workers=2) as pool:
        await pool.wait_ready()

        async def ask(features: Any) -> None:
            assert np.array_equal(await pool.predict(features), sums(features))

        for number, cut in enumerate(cuts):
            async with anyio.create_task_group() as group:
                group.start_soon(ask, request(number + 0.25))
                group.start_soon(ask, request(number + 0.5, cut))
                group.start_soon(ask, request(number + 0.75))
        await until(lambda: pool.statistics().restarts == len(cuts))
        now = pool.statistics()
        assert now.answered == now.submitted == 3 * len(cuts)
        assert pool.statistics().failed == 0
        assert adds_up(pool)


SIDES: dict[str, tuple[Callable[[Stage], FunctionPredictor[Any]], Callable[[], int]]] = {
    "reply": (cutting_replies, length_of_reply),
    "request": (cutting_requests, length_of_request),
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("cutting", "length"), SIDES.values(), ids=SIDES)
async def test_a_worker_that_dies_at_any_byte_of_a_frame_harms_nobody(
    stage: Stage, cutting: Callable[[Stage], FunctionPredictor[Any]], length: Callable[[], int]
) -> None:
    assert length() > 150
    await cut_all(cutting(stage), range(length()))
