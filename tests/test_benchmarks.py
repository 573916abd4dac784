"""``python -m benchmarks``: that it runs and what it prints; timings are nobody's promise here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import latency
from benchmarks.contenders import Way
from benchmarks.harness import Contender, ContenderFailed

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(
        sys.version_info >= (3, 12), reason="no TensorFlow with Estimators for this Python"
    ),
    pytest.mark.timeout(300),  # each run imports TensorFlow half a dozen times
]


def run(benchmark: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", benchmark, "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert (found["benchmark"], found["model"], found["quick"]) == (benchmark, "small", True)
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert machine["packages"]["tensorflow"].startswith("2.")
    return found


def is_spread(figure: dict[str, float]) -> bool:
    return 0 < figure["low"] <= figure["median"] <= figure["high"]


def test_latency_compares_the_pool_with_the_hop_floor_and_with_the_predictor_in_process() -> None:
    found = run("latency")
    lines = {line["name"]: line for line in found["contenders"]}
    pools = {f"pool, {method}, asyncio, 1 worker" for method in ("generator", "session")}
    floors = {f"hop floor, {method}" for method in ("generator", "session")}
    bare = {"estimator.predict", "in process, generator", "in process, session"}
    assert set(lines) == pools | floors | bare
    for name, line in lines.items():
        assert is_spread(line["p50_seconds"])
        assert line["p99_seconds"]["median"] >= line["p50_seconds"]["median"]
        assert (line["to_in_process"] is not None) == (name not in bare)
        assert (line["to_floor"] is not None) == (name in pools)
    assert {goal["name"] for goal in found["goals"]} == {
        f"{name}: p50 / hop floor" for name in pools
    }
    for goal in found["goals"]:
        assert goal["limit"] == 1.25
        assert goal["reached"] == (goal["figure"] <= goal["limit"])


def test_the_budget_divides_a_request_into_three_spans() -> None:
    lines = run("budget")["contenders"]
    assert [line["name"] for line in lines] == [
        "in process, session",
        "hop floor, session",
        "pool, session, asyncio, 1 worker",
    ]
    for line in lines:
        for span in ("to_model", "in_model", "back"):
            assert is_spread(line[span])
        assert line["in_model"]["median"] > line["to_model"]["low"]


def test_startup_compares_forked_workers_with_fresh_interpreters() -> None:
    found = run("startup")
    assert set(found["times"]) == {"forked", "afresh", "bare interpreter"}
    assert all(is_spread(times["second"]) for times in found["times"].values())
    assert all(
        is_spread(found["times"][start][what])
        for start in ("forked", "afresh")
        for what in ("first", "again")
    )
    assert is_spread(found["second_to_afresh"])
    assert is_spread(found["second_to_bare"])
    for pools in found["memory"].values():
        (pool,) = pools
        assert pool["workers"] == 2
        assert 0 < pool["worker_private"] < pool["worker"] < pool["total"]
    assert [goal["limit"] for goal in found["goals"]] == [0.4, 0.4, 0.5]


class Answering:
    """Stands for a contender: gives the answers that it was made with."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)

    def order(self, *_: Any) -> tuple[None, list[dict[str, Any]]]:
        return None, self.answers


def answer(probability: float, kind: str = "f4") -> dict[str, Any]:
    return {"p": np.array([[probability]], kind), "classes": np.array([[b"1"]], object)}


@pytest.mark.parametrize(
    "wrong",
    [
        [answer(0.9), answer(0.1)],
        [answer(0.1), answer(0.9, "f8")],
        [answer(0.1), {"p": np.array([[0.9]], "f4")}],
        [answer(0.1), {**answer(0.9), "classes": np.array([[b"0"]], object)}],
    ],
    ids=["another row's", "dtype", "missing output", "text"],
)
def test_a_contender_that_answers_otherwise_than_the_estimator_voids_the_run(
    wrong: list[dict[str, Any]],
) -> None:
    naive, pool = Way("naive"), Way("pool", "session", "asyncio", 1)
    expected = Answering(answer(0.1), answer(0.9))
    good: Any = {naive: expected, pool: Answering(answer(0.1), answer(0.900001))}
    latency.check(good)
    bad: Any = {naive: expected, pool: Answering(*wrong)}
    with pytest.raises(ContenderFailed, match="pool, session, asyncio, 1 worker answered row"):
        latency.check(bad)


def test_a_contender_that_fails_tells_why() -> None:
    contender = Contender("broken", divide, 0)
    try:
        with pytest.raises(ContenderFailed, match=r"(?s)broken: .*ZeroDivisionError"):
            contender.result()
    finally:
        contender.end()


def divide(_: Any, by: int) -> None:
    raise ValueError(1 // by)
