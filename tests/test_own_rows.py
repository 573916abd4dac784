"""Many callers at once: every row comes back with its own answer."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

from benchmarks import rows
from benchmarks.rows import Question
from predictpool import FunctionPredictor, PredictorPool
from tests.pools import POOL_TEST, adds_up

pytestmark = [*POOL_TEST, pytest.mark.timeout(120)]  # it is much work, not a long wait

CALLERS = 500
ROWS = 100_000
MOST = 3  # rows in a request


async def test_100_000_rows_of_500_callers_each_come_back_with_their_own_answer() -> None:
    questions = all_questions()
    predictor = FunctionPredictor(
        rows.load, row_wise=True, signature=rows.SIGNATURE, preload=("benchmarks.rows",)
    )
    async with PredictorPool(predictor, workers=2) as pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:
            for first in range(CALLERS):
                group.start_soon(ask, pool, questions[first::CALLERS])
        statistics = pool.statistics()
        assert adds_up(pool)
    assert (statistics.answered, statistics.rows) == (len(questions), ROWS)
    # With 500 callers there is always something to join: this was a proof about batches.
    assert statistics.batches < len(questions) / 4


def all_questions() -> list[Question]:
    """Return requests of several sizes; no row is in two of them."""
    supply, sizes = rows.Rows(seed=8), random.Random(8)
    questions, left = [], ROWS
    while left:
        questions.append(supply.take(min(left, sizes.randint(1, MOST))))
        left -= questions[-1].rows
    return questions


async def ask(pool: PredictorPool[Any], questions: list[Question]) -> None:
    for question in questions:
        outputs = await pool.predict(question.features)
        assert question.answered_by(outputs), f"{question} was answered with {outputs}"
