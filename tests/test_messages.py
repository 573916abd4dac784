"""Messages of every size arrive, from none to more than 2 GiB; wrong lengths harm nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from predictpool import FunctionPredictor, PredictorPool
from tests.conftest import Family
from tests.pools import ONE_LOOP, POOL_TEST, adds_up, calling, held, until_waiting
from tests.stage import Stage

pytestmark = POOL_TEST


# --- nothing -----------------------------------------------------------------------


def text(*rows: str) -> Any:
    return np.array(rows, dtype=object)


NOTHING: dict[str, Any] = {
    "no rows": np.empty(0),
    "no rows of a shape": np.empty((0, 3), np.int16),
    "no rows of text": text(),
    "rows without columns": np.empty((3, 0), np.float32),
    "empty text": text("", "", ""),
    "empty bytes": np.array([b"", b""], dtype=object),
    "text of no width": np.array(["", ""]),
    "mapping of no rows": {"a": np.empty((0, 2)), "b": text()},
    "mapping of empty text": {"a": text("", ""), "b": np.empty((2, 0))},
}


def same(given: Any, expected: Any) -> bool:
    """Whether arrays have the same shapes and rows."""
    if isinstance(expected, dict):
        return given.keys() == expected.keys() and all(same(given[n], expected[n]) for n in given)
    alike: bool = given.shape == expected.shape and given.tolist() == expected.tolist()
    return alike


@pytest.mark.parametrize("row_wise", [False, True], ids=["alone", "row-wise"])
async def test_messages_without_a_byte_arrive_as_they_were_sent(row_wise: bool) -> None:
    async with PredictorPool(calling(lambda x: x, row_wise=row_wise), workers=1) as pool:
        for name, features in NOTHING.items():
            assert same(await pool.predict(features), features), name
        assert await pool.predict_one("") == ""
        assert pool.statistics().restarts == 0
        assert adds_up(pool)


async def test_requests_without_rows_share_a_batch_with_others(stage: Stage) -> None:
    async with PredictorPool(held(stage), workers=1, max_batch_size=2) as pool:
        answers: dict[int, Any] = {}

        async def ask(number: int, rows: list[float]) -> None:
            answers[number] = (await pool.predict(np.array(rows))).tolist()

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0, [])
            assert await stage.hears() == 0
            for number, rows in enumerate(([], [1.0], [], [2.0], []), 1):
                group.start_soon(ask, number, rows)
                await until_waiting(pool, number)
            stage.let_go(5)
        assert stage.heard() == [2]
        assert answers == {0: [], 1: [], 2: [2.0], 3: [], 4: [4.0], 5: []}
        assert pool.statistics().rows == 2


async def test_outputs_without_a_byte_are_answers() -> None:
    outputs: list[Any] = [
        {},
        np.empty((1, 0)),
        text(""),
        {"a": np.empty((1, 0))},
        [],
        "",
        b"",
        None,
    ]

    def predict(x: Any) -> Any:
        return outputs[int(x[0])]

    async with PredictorPool(calling(predict), workers=1) as pool:
        for number, expected in enumerate(outputs):
            answer = await pool.predict([number])
            if isinstance(expected, dict | np.ndarray):
                assert same(answer, expected), expected
            else:
                assert answer == expected
        assert pool.statistics().answered == len(outputs)


# --- very much ---------------------------------------------------------------------

TWO_GIBIBYTES = 1 << 31


@ONE_LOOP
@pytest.mark.timeout(110)
async def test_an_array_of_more_than_two_gibibytes_arrives_whole() -> None:
    free = psutil.virtual_memory().available
    if free < 8 << 30:
        pytest.skip(f"it takes 8 GiB of free memory, and there are {free / (1 << 30):.1f}")
    marks = [0, TWO_GIBIBYTES - 1, TWO_GIBIBYTES, TWO_GIBIBYTES + 100_000_000]

    def predict(x: Any) -> Any:
        return [len(x), int(np.count_nonzero(x)), x[marks].tolist()]

    large = np.zeros(marks[-1] + 1, np.uint8)  # zeros take no memory here
    large[marks] = [1, 2, 3, 4]
    async with PredictorPool(calling(predict), workers=1, timeout=100, hang_timeout=100) as pool:
        assert await pool.predict(large) == [len(large), 4, [1, 2, 3, 4]]


def shared_memory_of(process: psutil.Process) -> list[str]:
    """What a process has open or mapped of /dev/shm."""
    found = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # what lists them is one of them
            found.append(str(link.readlink()))
    return [target for target in found if "/shm" in target]


@ONE_LOOP
async def test_no_process_uses_dev_shm_while_a_large_message_is_on_its_way(
    stage: Stage, nothing_left: Family
) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold("running")
            return x

        return predict

    large = np.arange(5_000_000.0)
    async with PredictorPool(FunctionPredictor(load), workers=2) as pool:
        await pool.wait_ready()

        async def ask() -> None:
            assert np.array_equal(await pool.predict(large), large)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(ask)
            for _ in range(4):
                await stage.hears()
                for pid in (os.getpid(), *nothing_left.pids()):
                    assert not shared_memory_of(psutil.Process(pid))
                stage.let_go()


# --- outputs of the wrong length ---------------------------------------------------


def one_less(x: Any) -> Any:
    return (x * 2)[:-1]


def one_more(x: Any) -> Any:
    return np.append(x * 2, -1.0)


def without_the_bad(x: Any) -> Any:
    return (x * 2)[x != 2.0]


def one_of_two(x: Any) -> Any:
    return {"right": x * 2, "wrong": (x * 2)[:-1]}


def a_list(x: Any) -> Any:
    return (x * 2).tolist()


def a_number(x: Any) -> Any:
    return np.float64(x.sum())


@ONE_LOOP
@pytest.mark.parametrize(
    "model", [one_less, one_more, without_the_bad, one_of_two, a_list, a_number]
)
async def test_outputs_of_the_wrong_length_never_reach_a_mate(
    model: Callable[[Any], Any], stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Callable[[Any], Any]:
        def predict(x: Any) -> Any:
            stage.hold(len(x))
            return model(x)

        return predict

    rows = [np.array([float(n), n + 0.5]) for n in range(5)]
    async with PredictorPool(FunctionPredictor(load, row_wise=True), workers=1) as pool:
        answers: dict[int, Any] = {}

        async def ask(number: int) -> None:
            answers[number] = await pool.predict(rows[number])

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0)
            await stage.hears()
            for number in range(1, 5):
                group.start_soon(ask, number)
                await until_waiting(pool, number)
            stage.let_go(100)
        assert stage.heard() == [8, 2, 2, 2, 2]
        for number, answer in answers.items():
            np.testing.assert_equal(answer, model(rows[number]))
        assert pool.statistics().answered == 5
    assert caplog.text.count("every request runs as a call of its own") == 1
