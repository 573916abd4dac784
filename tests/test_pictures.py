"""``python -m benchmarks.plot``: every picture from what its benchmark's own dataclasses hold."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import echo, large, latency, memory, startup
from benchmarks.figures import Spread
from benchmarks.startup import Times
from tests import needs

pytestmark = needs.matplotlib

SPREAD = Spread(2.0, 1.0, 3.0)


def latency_found() -> dict[str, Any]:
    kinds = ("naive", "hop floor", "in process", "pool")
    lines = [
        latency.Line(f"the {kind}", kind, None, None, 1, SPREAD, SPREAD, None, None)
        for kind in kinds
    ]
    return {"contenders": [dataclasses.asdict(line) for line in lines]}


def throughput_found() -> dict[str, Any]:
    spread = dataclasses.asdict(SPREAD)
    lines = [
        {"name": f"the {kind}", "kind": kind, "callers": callers, "rows": 1}
        for kind in ("in process", "by hand", "pool")
        for callers in (64, 256)
    ]
    return {"lines": [{**line, "calls_per_second": spread} for line in lines]}


def echo_found() -> dict[str, Any]:
    lines = [
        echo.Line(f"the {kind}", kind, None, size, SPREAD, SPREAD)
        for kind in ("raw socket", "pool")
        for size in (64, 1024)
    ]
    return dataclasses.asdict(echo.Outcome(echo.QUICK, lines))


def large_found() -> dict[str, Any]:
    lines = [
        large.Line(f"the {kind}", kind, None, direction, size, SPREAD, SPREAD, None)
        for kind in ("raw socket", "pool", "Ray actors")
        for direction, size in (("in", large.MB), ("in", 16 * large.MB), ("out", 16 * large.MB))
    ]
    return dataclasses.asdict(large.Outcome(large.QUICK, lines, []))


def startup_found() -> dict[str, Any]:
    times = {
        "the forked": Times(SPREAD, SPREAD, SPREAD),
        "the bare interpreter": Times(None, SPREAD, None),
    }
    return dataclasses.asdict(startup.Outcome(1, times, SPREAD, SPREAD, SPREAD))


def memory_found() -> dict[str, Any]:
    pools = [memory.PoolMemory(2, 1e6, 2e6, 3e6, 2e6, 9e6, 7e6)]
    return dataclasses.asdict(memory.Outcome(1, {"forked": pools, "afresh": pools}))


FOUND = {
    "latency": (latency_found, ["the naive", "the hop floor", "the in process", "the pool"]),
    "throughput": (throughput_found, ["the in process", "the by hand", "the pool"]),
    "echo": (echo_found, ["the raw socket", "the pool", "64 B", "1 KB"]),
    "large": (large_found, ["the raw socket", "the pool", "the Ray actors", "1 MB", "16 MB"]),
    "startup": (startup_found, ["the forked", "the bare interpreter"]),
    "memory": (memory_found, ["2 workers, forked", "2 workers, afresh", "template"]),
}


@pytest.mark.parametrize("benchmark", FOUND)
def test_a_picture_names_what_was_compared(benchmark: str) -> None:
    from matplotlib.text import Text

    from benchmarks import plot

    make, names = FOUND[benchmark]
    figure = plot.DRAWN[benchmark]({"benchmark": benchmark, "quick": False, **make()})
    figure.draw_without_rendering()
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert set(names) <= texts


def test_every_picture_is_tried_here() -> None:
    from benchmarks import plot

    assert set(FOUND) == set(plot.DRAWN)


def test_what_was_printed_can_be_drawn_again_and_is_the_same(tmp_path: Path) -> None:
    found = {"benchmark": "echo", "quick": True, **echo_found()}
    Path(tmp_path, "found.json").write_text(json.dumps(found))
    for name in ("one.svg", "two.svg", "one.png"):
        arguments = [str(tmp_path / "found.json"), str(tmp_path / name)]
        subprocess.run([sys.executable, "-m", "benchmarks.plot", *arguments], check=True)
    first = Path(tmp_path, "one.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert first == Path(tmp_path, "two.svg").read_bytes()
    assert Path(tmp_path, "one.png").read_bytes().startswith(b"\x89PNG")
