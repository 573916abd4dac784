"""``python -m benchmarks``: that it runs and what it prints; timings are nobody's promise here."""

import dataclasses
import importlib.util
import json
import operator
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.lowlevel
import numpy as np
import pytest

from benchmarks import (
    carriers,
    gpu,
    latency,
    load,
    routing,
    rows,
    serve,
    soak,
    steps,
    throughput,
    trivial,
)
from benchmarks.contenders import LOOPS, Loop, Way, on_loop
from benchmarks.figures import Goal, Spread
from benchmarks.harness import Contender, ContenderFailed
from benchmarks.services import Level
from predictpool import PoolStatistics
from tests import needs

ROOT = Path(__file__).parents[1]
CORES = os.sched_getaffinity(0)

pytestmark = pytest.mark.timeout(300)  # most runs import TensorFlow half a dozen times


def run(benchmark: str, *options: str, model: str | None = "small") -> dict[str, Any]:
    found = printed("benchmarks", benchmark, "--quick", "--json", *options)
    check_heading(found, benchmark, model)
    return found


def printed(module: str, *arguments: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def check_heading(found: dict[str, Any], benchmark: str, model: str | None) -> None:
    assert (found["benchmark"], found["model"], found["quick"]) == (benchmark, model, True)
    machine = found["machine"]
    assert machine["cores"] >= 1
    assert {"predictpool", "numpy"} <= set(machine["packages"])


def is_spread(figure: dict[str, float]) -> bool:
    return 0 < figure["low"] <= figure["median"] <= figure["high"]


@needs.estimators
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


@needs.estimators
def test_throughput_compares_what_many_callers_can_ask() -> None:
    found = run("throughput")
    plain = {"ProcessPoolExecutor", "anyio.to_process"}
    services = {*plain, "by hand", "pool, generator, asyncio"}
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    for line in found["lines"]:
        lines.setdefault((line["callers"], line["rows"]), {})[line["name"]] = line
        for what in ("calls_per_second", "p50_seconds", "p99_seconds", "to_limit"):
            assert is_spread(line[what])
        alone = line["kind"] == "in process"
        assert (line["lag_p99_seconds"] is None) == alone
        assert (line["to_by_hand"] is None) == (alone or line["name"] == "by hand")
    in_process = {"in process, generator", "in process, session"}
    assert {level: set(names) for level, names in lines.items()} == {
        (1, 1): in_process | services,
        (1, 32): in_process,
        (1, 64): in_process,
        (64, 1): services,
        (256, 1): services,
        (16, 32): services,
    }
    assert {line["name"] for line in found["open_lines"]} == {
        "pool, generator, asyncio",
        "by hand",
        "no pool: answered at once",
    }
    for line in found["open_lines"]:
        assert 0 <= line["refused"] < line["sent"]
        assert is_spread(line["p99_to_p50"])
    goals = {goal["name"]: goal for goal in found["goals"]}
    for callers in (64, 256):
        goal = goals[f"pool, generator, asyncio, {callers} callers: calls/s / by hand"]
        assert (goal["limit"], goal["aim"], goal["at_least"]) == (1, 1.5, True)
        pool = lines[callers, 1]["pool, generator, asyncio"]
        assert goal["figure"] == pool["to_by_hand"]["median"]


@needs.estimators
@needs.serve
def test_serve_asks_our_server_over_http_in_both_protocols() -> None:
    found = run("serve")
    asked = [(line["name"], line["callers"]) for line in found["lines"]]
    servers = ["predictpool, Open Inference Protocol", "predictpool, TensorFlow Serving"]
    assert asked == [(name, callers) for callers in (1, 64, 256) for name in servers]
    for line in found["lines"]:
        assert all(map(is_spread, (line["calls_per_second"], line["p50_seconds"])))
        assert line["to_python"] is None  # the quick run has no peers
    assert (found["goals"], found["peers"]) == ([], [])


def speed(*rounds: float) -> Any:
    return [load.Outcome(int(each), 1.0, 0.1, 0.2, None, 1.0, 1.0) for each in rounds]


def test_our_server_is_compared_with_the_best_other_one_in_python() -> None:
    at = Level(256, 1)
    ours = "predictpool, Open Inference Protocol"
    outcomes: throughput.Outcomes = {
        (throughput.PEERS_LOOP, Level(1, 1)): speed(9000),
        (ours, at): speed(3000, 4000, 5000),
        ("mosec, batching", at): speed(8000, 8000, 8000),  # in Rust
        ("MLServer, batching", at): speed(1500, 1600, 2000),
        ("BentoML", at): speed(9000, 100, 100),
    }
    lines = serve.sum_up(outcomes)
    assert [line.name for line in lines if not line.python] == ["mosec, batching"]
    (line,) = (line for line in lines if line.name == ours)
    assert line.to_python == Spread(2.5, 2.0, 2.5)
    assert [goal.reached for goal in serve.goals(serve.Found(throughput.FULL, lines, []))] == [True]


@needs.estimators
def test_the_budget_divides_a_request_into_three_spans() -> None:
    found = run("budget")
    lines = found["contenders"]
    assert [line["name"] for line in lines] == [
        "in process, session",
        "hop floor, session",
        "pool, session, asyncio, 1 worker",
    ]
    for line in lines:
        for span in ("to_model", "in_model", "back"):
            assert is_spread(line[span])
    ways = ["arrays as declared", "other arrays", "lists"]
    assert [(line["way"], line["rows"]) for line in found["encoding"]] == [
        *((way, 1) for way in ways),
        *((way, 64) for way in ways),
        ("predict_one", 1),
    ]
    assert all(is_spread(line[kind]) for line in found["encoding"] for kind in ("number", "text"))
    (line,) = found["steps"]["lines"]
    assert list(line["steps"]) == list(steps.STEPS)
    # None is passed before the one that it follows: then its function is no longer the pool's.
    assert all(map(is_spread, line["steps"].values()))
    assert is_spread(line["without_clocks"])


@needs.estimators
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
    assert is_spread(found["again_to_bare"])
    assert [goal["limit"] for goal in found["goals"]] == [0.4, 0.4, 0.4]


@needs.estimators
def test_memory_compares_forked_workers_with_fresh_interpreters() -> None:
    found = run("memory")
    assert set(found["pools"]) == {"forked", "afresh"}
    for pools in found["pools"].values():
        assert [pool["workers"] for pool in pools] == [1, 2]
        for pool in pools:
            assert 0 < pool["worker_private"] < pool["worker"] < pool["total_without_template"]
            assert pool["total"] == pool["total_without_template"] + pool["template"]
    assert [(goal["limit"], goal["aim"]) for goal in found["goals"]] == [(0.5, 0.35), (0.75, 0.6)]


@needs.estimators
def test_saved_models_are_measured_in_a_session_and_as_a_function() -> None:
    found = run("saved", model=None)
    ways = Counter((line["model"], line["where"], line["method"]) for line in found["lines"])
    assert len(ways) == len(found["lines"]) == 8
    assert {method for _, _, method in ways} == {"session", "function"}
    for line in found["lines"]:
        assert is_spread(line["p50_seconds"])
        assert line["load_seconds"] > 0


def test_an_echo_is_compared_with_the_raw_socket() -> None:
    found = run("echo", model=None)
    raw = [name for name in names_of(found) if name.startswith("raw socket")]
    assert raw[:2] == ["raw socket", "raw socket, caller on the worker's core"]
    assert names_of(found) == raw + [f"pool, {loop}" for loop in LOOPS]
    floors = {line["bytes"]: line for line in found["lines"] if line["name"] == "raw socket"}
    assert list(floors) == [64, 4096, 65536, 1048576]
    for line in found["lines"]:
        assert is_spread(line["p50_seconds"])
        assert is_ratio(line["to_floor"], line["p50_seconds"], floors[line["bytes"]]["p50_seconds"])
    goals = [(goal["limit"], goal["aim"]) for goal in found["goals"]]
    assert goals == [(4, 3), (3, 2.5), (5, 4)]


def test_scaling_compares_more_workers_and_a_second_process() -> None:
    found = run("scaling", model=None)
    shown = [(line["loop"], line["workers"], line["rows"]) for line in found["feed"]]
    assert shown == [
        *((loop, workers, 1) for loop in ("asyncio", "uvloop") for workers in (1, 2)),
        *(("asyncio", 2, rows) for rows in (8, 64)),
    ]
    for line in found["feed"]:
        assert line["callers"] * line["rows"] == 128 * line["workers"]
        assert 0 < line["to_workers"]["median"] < 2  # a batch that began before may end within
        assert 0 < line["own_cpu_seconds"]["median"] < 1
    assert [line["kind"] for line in found["spread"]] == ["waiting", "computing"]
    for line in found["spread"]:
        assert is_ratio(line["ratio"], line["two"], line["one"])


def test_large_arrays_are_compared_with_the_raw_socket_and_watched_from_the_event_loop() -> None:
    found = run("large", model=None)
    ways = names_of(found)
    assert ways[:3] == [
        "raw socket, default buffer",
        "raw socket, 4 MB buffer",
        "pool, asyncio, 2 workers",
    ]
    assert {"ProcessPoolExecutor", "anyio.to_process"} < set(ways)
    sizes = Counter((line["direction"], line["bytes"] >> 20) for line in found["lines"])
    assert sizes == {way: len(ways) for way in (("in", 1), ("in", 16), ("out", 16))}
    for line in found["lines"]:
        assert is_spread(line["p50_seconds"])
        same = [each for each in found["lines"] if each["name"].startswith("raw socket")]
        floor = min(
            (each["p50_seconds"] for each in same if is_as_large(each, line)),
            key=operator.itemgetter("median"),
        )
        assert is_ratio(line["to_floor"], line["p50_seconds"], floor)
    assert [lag["name"] for lag in found["lags"]] == ways[2:]
    assert all(0 < lag["p99_seconds"] <= lag["worst_seconds"]["high"] for lag in found["lags"])
    assert (found["goals"][0]["limit"], found["goals"][0]["aim"]) == (1.1, 0.7)


def test_routing_beats_every_other_choice_where_each_kind_of_worker_is_good_for_something() -> None:
    # Simulated time: neither the machine nor its load has a part in it.
    found = run("routing", model=None)
    assert len(found["goals"]) == len(routing.SCENARIOS)
    assert [goal["name"] for goal in found["goals"] if not goal["reached"]] == []
    mean = {(line["scenario"], line["way"]): line["mean_seconds"] for line in found["lines"]}
    for scenario in routing.SCENARIOS:
        if scenario.both:
            others = [seconds for (name, _), seconds in mean.items() if name == scenario.name]
            assert mean[scenario.name, "routed"] == min(others)


@needs.ray
def test_a_pool_on_ray_is_compared_with_bare_actors_and_loses_nothing_with_a_node() -> None:
    found = run("ray", model=None)
    assert [line["features"] for line in found["calls"]] == ["one array", "13 arrays"]
    for line in (*found["calls"], found["throughput"]):
        assert is_spread(line["bare"])
        assert is_spread(line["pool"])
        assert is_ratio(line["ratio"], line["pool"], line["bare"])
    death = found["death"]
    assert (death["failed"], death["lost"], death["died"]) == (0, 0, 1)
    assert death["asked"] == death["answered"] >= 500
    assert [goal["limit"] for goal in found["goals"]] == [1.2, 1.2, 5, 0, 0, 1]


@needs.matplotlib
def test_several_run_one_after_the_other_and_what_can_be_drawn_is(tmp_path: Path) -> None:
    picture = tmp_path / "found.svg"
    found = printed("benchmarks", "echo", "overload", "--quick", "--json", "--plot", str(picture))
    assert list(found["benchmarks"]) == ["echo", "overload"]
    for name, each in found["benchmarks"].items():
        check_heading(each, name, None)
    assert [path.name for path in tmp_path.iterdir()] == ["found-echo.svg"]


def is_ratio(ratio: dict[str, float], figure: dict[str, float], to: dict[str, float]) -> bool:
    """Whether it can be a ratio of these two, round by round."""
    lowest, highest = figure["low"] / to["high"], figure["high"] / to["low"]
    return is_spread(ratio) and lowest <= ratio["low"] and ratio["high"] <= highest


def is_as_large(line: dict[str, Any], as_line: dict[str, Any]) -> bool:
    return all(line[name] == as_line[name] for name in ("direction", "bytes"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4)])
def test_a_large_array_that_comes_back_otherwise_ends_the_run(shape: tuple[int, int]) -> None:
    message = np.full(shape, 3, np.float32)
    answer = trivial.ends(message)
    carriers.check(message, answer)
    for wrong in (answer + 1, np.concatenate([answer, answer]), answer[..., np.newaxis]):
        with pytest.raises(RuntimeError, match="expected"):
            carriers.check(message, wrong)


def names_of(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(line["name"] for line in found["lines"]))


@pytest.mark.faults
@pytest.mark.parametrize("loop", LOOPS)
def test_the_soak_loses_nothing_and_every_request_ends_in_one_bin(loop: str) -> None:
    found = run("soak", "--loop", loop, model=None)
    bins = found["bins"]
    assert sum(bins.values()) == found["requests"]
    for name in ("answered", "invalid as expected", "poison as expected", "cancelled", "timed out"):
        assert bins[name] > 0
    for name in ("wrong", "unexpected", "late", "lost"):
        assert bins[name] == 0
    assert found["unattributed"] == found["unexplained"] == found["processes_left"] == 0
    assert found["disagreements"] == []
    assert found["disturbances"]["kills"] > 0
    assert found["restarts"] > 0
    assert 0 < found["recovery"]["median"] <= found["recovery"]["worst"]
    assert (found["growth"]["descriptors"], found["growth"]["threads"]) == (0, 0)
    goals = {goal["name"]: goal for goal in found["goals"]}
    assert goals["lost or late requests"]["reached"]
    assert goals["requests"]["at_least"]


def test_under_overload_what_expired_or_was_refused_never_reached_a_worker() -> None:
    found = run("overload", model=None)
    assert found["offered"] > found["capacity"] > found["served"] / 2 > 0
    assert found["refused"] > 0
    assert found["expired"]["waiting"] > 0
    for what in ("expired_reached_worker", "refused_reached_worker", "not_once"):
        assert found[what] == 0
    for what in ("refusal", "latency"):
        assert 0 < found[f"{what}_p50"] <= found[f"{what}_p99"]
    assert [goal["at_least"] for goal in found["goals"]].count(True) == 1


def changed(outputs: dict[str, Any], name: str, to: Any) -> dict[str, Any]:
    return {**outputs, name: to}


def test_only_its_own_answer_proves_a_row() -> None:
    supply = rows.Rows(1)
    question, other = supply.take(3), supply.take(3)
    features = {**question.features}
    features["text"] = np.array([text.encode() for text in features["text"]], object)
    outputs = rows.answer(features)
    assert question.answered_by(outputs)
    assert not other.answered_by(outputs)
    for name, values in outputs.items():
        assert not question.answered_by(changed(outputs, name, values[::-1]))
        assert not question.answered_by(changed(outputs, name, values[:2]))
        assert not question.answered_by(changed(outputs, name, values.astype("f4")))
    one = {name: values[0] for name, values in outputs.items()}
    assert question.example_answered_by(one)
    assert not other.example_answered_by(one)


def statistics(**counts: int) -> PoolStatistics:
    zeros = {field.name: 0 for field in dataclasses.fields(PoolStatistics)}
    return PoolStatistics(**{**zeros, **counts})


def test_the_soak_finds_what_the_pool_has_not_counted() -> None:
    bins = Counter({"answered": 7, "broken": 1, "cancelled": 2, "refused": 1})
    fits = {"submitted": 11, "answered": 8, "failed": 1, "cancelled": 1, "refused": 1, "rows": 9}
    assert soak.disagreements(bins, 9, statistics(**fits)) == []  # one left as its answer came
    for name, count in fits.items():
        for wrong in (0, count + 2) if name != "rows" else (0,):
            assert soak.disagreements(bins, 9, statistics(**{**fits, name: wrong}))
    assert soak.disagreements(bins, 9, statistics(**fits, running=1))


def test_a_goal_may_be_a_lower_limit() -> None:
    assert Goal("", 2, 1, at_least=True).reached
    assert Goal("", 1, 2).reached
    assert not Goal("", 1, 2, at_least=True).reached
    assert not Goal("", 2, 1).reached


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


def test_a_service_that_answers_with_anothers_rows_voids_the_run() -> None:
    both = [answer(0.1), answer(0.9)]
    good: Any = {throughput.LIMIT: Answers(both), throughput.POOL: Answers(both)}
    throughput.check(good, throughput.LIMIT)
    bad: Any = {**good, throughput.POOL: Answers(both[::-1])}
    with pytest.raises(ContenderFailed, match="pool, generator, asyncio answered row 0"):
        throughput.check(bad, throughput.LIMIT)


class Answers:
    """Stands for a contender that is a service."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self.answers = answers

    def order(self, *_: Any) -> list[dict[str, Any]]:
        return self.answers


@pytest.mark.parametrize("loop", LOOPS)
def test_in_a_closed_loop_so_many_ask_at_once_and_never_for_the_same_row(loop: Loop) -> None:
    asked: list[int] = []
    under_way: list[int] = []
    most: list[int] = []

    async def ask(row: Any) -> None:
        asked.append(row)
        under_way.append(row)
        if len(under_way) > len(most):
            most[:] = under_way
        assert len(set(under_way)) == len(under_way)
        await anyio.lowlevel.checkpoint()
        under_way.remove(row)

    async def closed_loop() -> load.Outcome:
        rows: Any = range(8)
        return await load.closed_loop(ask, rows, callers=4, seconds=0.05, warm_up_seconds=0.01)

    outcome = on_loop(loop, closed_loop)
    assert 0 < outcome.calls < len(asked)  # those of the warm-up do not count
    assert outcome.p50_seconds <= outcome.p99_seconds
    assert len(most) == 4
    assert asked == [number % 8 for number in range(len(asked))]


def test_gpu_asks_in_each_place_as_far_as_there_are_libraries() -> None:
    found = run("gpu", model=None)
    libraries = {name for name in gpu.LIBRARIES if importlib.util.find_spec(name)}
    for what in ("lines", "loads"):
        assert {one["library"] for one in found[what]} == libraries
    for line in found["lines"]:
        assert set(line["p50_seconds"]) == {"1", "4"}
        assert all(map(is_spread, line["p50_seconds"].values()))
        assert line["sight"]["cores"] == (1 if line["where"] == "one core" else len(CORES))
        assert line["sight"]["gpus"] == (line["where"] == "GPU")
    assert all(is_spread(load["rows_per_second"]) for load in found["loads"])


@pytest.mark.parametrize(
    ("gpu_ms", "rows"), [([9, 9, 9], None), ([9, 9, 2], 64), ([1, 9, 2], 64), ([1, 1, 1], 1)]
)
def test_the_crossover_is_where_the_gpu_stays_faster(gpu_ms: list[int], rows: int | None) -> None:
    def line(where: str, ms: list[int]) -> gpu.Line:
        sight = gpu.Sight("", 0, "", 1, None, 0, 0)
        spreads = {n: Spread.of([one]) for n, one in zip((1, 8, 64), ms, strict=True)}
        return gpu.Line("torch", 16, where, 1.0, sight, None, spreads)

    lines = [line("one core", [2, 4, 8]), line("2 cores", [3, 3, 3]), line("GPU", gpu_ms)]
    assert list(gpu._crossovers(lines)) == [gpu.Crossover("torch", 16, rows)]


@pytest.mark.anyio
async def test_a_closed_loop_needs_more_rows_than_callers() -> None:
    async def ask(row: Any) -> None:
        raise AssertionError(row)

    with pytest.raises(ValueError, match="7 requests for 4 callers"):
        await load.closed_loop(ask, [{}] * 7, callers=4, seconds=1, warm_up_seconds=1)


def test_a_contender_that_fails_tells_why() -> None:
    contender = Contender("broken", divide, 0)
    try:
        with pytest.raises(ContenderFailed, match=r"(?s)broken: .*ZeroDivisionError"):
            contender.result()
    finally:
        contender.end()


def divide(_: Any, by: int) -> None:
    raise ValueError(1 // by)
