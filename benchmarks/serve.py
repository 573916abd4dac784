"""``python -m benchmarks serve``: ``predictpool serve`` and other servers, asked over HTTP."""

import functools
import statistics
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks import harness, load, peers, services, throughput
from benchmarks.figures import Goal, Spread, ratios
from benchmarks.harness import Contender
from benchmarks.load import Ask
from benchmarks.models import Model
from benchmarks.peers import judged
from benchmarks.peers.judged import Judged
from benchmarks.report import Paper
from benchmarks.services import Level, Service
from benchmarks.throughput import ALONE, FEW, FULL, MANY, PEERS_LOOP, QUICK, Size

Note = Callable[[str], None]

Protocol = Literal["Open Inference Protocol", "TensorFlow Serving"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

LEVELS = (ALONE, FEW, MANY)

# Their path of a request is not in Python: mosec's is in Rust, Triton's in C++.
COMPILED = ("mosec", "pytriton")


@dataclass(frozen=True)
class Line:
    """What came of one server under so many clients; medians over the rounds.

    Attributes:
        python: whether a request's path is in Python.
        cpu_seconds: of all its processes and of the client together, for each call.
        to_python: calls per second against the best of the others whose path is in Python, round by
            round; None where there is none.
    """

    name: str
    kind: str
    python: bool
    callers: int
    calls_per_second: Spread
    p50_seconds: Spread
    p99_seconds: Spread
    cpu_seconds: Spread
    to_python: Spread | None


@dataclass(frozen=True)
class Found:
    """What the benchmark found.

    Attributes:
        peers: which took part, and whether as they should.
    """

    size: Size
    lines: list[Line]
    peers: list[Judged]


def listed(workers: int) -> list[Service]:
    """Return our server, asked in both protocols."""
    return [
        Service(
            f"predictpool, {protocol}",
            "pool",
            functools.partial(opened, protocol=protocol, workers=workers),
            "uvloop",
        )
        for protocol in PROTOCOLS
    ]


def opened(model: Model, *, protocol: Protocol, workers: int) -> AbstractAsyncContextManager[Ask]:
    """Start our server, in the contender's process; yields what asks it."""
    from benchmarks import served_pool  # needs what a client of it needs

    return served_pool.opened(model, protocol=protocol, workers=workers)


def run(model: Model, *, quick: bool, note: Note, environments: Path | None = None) -> Found:
    """Start every server and its client, compare the answers, and let them work in turn.

    Args:
        environments: where those of the peers are; None leaves the peers out.

    Raises:
        ContenderFailed: one failed, or answered something else than the predictor in process.
    """
    size = QUICK if quick else FULL
    servers = [peer for peer in peers.ALL if peer.module != "ray_actors"]
    there, looked = peers.installed(environments, servers) if environments else ([], {})
    started: dict[str, Contender] = {}
    with harness.all_ended(started.values()):
        in_process = functools.partial(services.serve_in_process, pinned=False)
        started[PEERS_LOOP] = Contender(PEERS_LOOP, in_process, "generator", model)
        ours = listed(size.workers)
        for service in ours:
            started[service.name] = service.start(model)
        for name, contender in started.items():
            note(f"starting: {name}")
            contender.result()
        failed = peers.start(there, model, note, started)
        throughput.check(started, PEERS_LOOP)
        asked = [service.name for service in [*ours, *there] if service.name in started]
        turns = [(PEERS_LOOP, ALONE), *((name, level) for level in LEVELS for name in asked)]
        outcomes: throughput.Outcomes = {turn: [] for turn in turns}
        for number in range(size.rounds):
            throughput.take_turns(started, outcomes, number, size, note)
    taken_part = (
        judged.judge(looked, failed, throughput.speeds_of(outcomes), PEERS_LOOP, servers)
        if environments
        else []
    )
    return Found(size, sum_up(outcomes), taken_part)


# --- what came of it ---------------------------------------------------------------


def sum_up(outcomes: throughput.Outcomes) -> list[Line]:
    """Return what came of every server at every level."""
    compiled = {peer.name for peer in peers.ALL if peer.environment in COMPILED}
    speeds = throughput.speeds_of(outcomes)
    best: dict[Level, list[float]] = {}
    for (name, level), speed in speeds.items():
        if not (name == PEERS_LOOP or name in compiled or name.startswith("predictpool")):
            best[level] = max(best.get(level, speed), speed, key=statistics.median)
    return [
        _line(name, level, rounds, name not in compiled, best.get(level))
        for (name, level), rounds in outcomes.items()
        if name != PEERS_LOOP
    ]


def _line(
    name: str, level: Level, rounds: list[load.Outcome], python: bool, best: list[float] | None
) -> Line:
    speed = [each.calls_per_second for each in rounds]
    return Line(
        name,
        "pool" if name.startswith("predictpool") else "peer",
        python,
        level.callers,
        Spread.of(speed),
        Spread.of(each.p50_seconds for each in rounds),
        Spread.of(each.p99_seconds for each in rounds),
        Spread.of(each.cpu_seconds / each.calls for each in rounds),
        ratios(speed, best) if best else None,
    )


def goals(found: Found) -> list[Goal]:
    """Compare our server with the best other one in Python, where there is one."""
    return [
        Goal(
            f"{line.name}, {line.callers} clients: calls/s / best Python server",
            line.to_python.median,
            2,
            at_least=True,
        )
        for line in found.lines
        if line.kind == "pool" and line.callers == MANY.callers and line.to_python is not None
    ]


def show(paper: Paper, found: Found) -> None:
    """Print how much each server answers in a second, and how soon."""
    size = found.size
    for level in LEVELS:
        table = paper.table(
            f"HTTP, keep-alive: {level.name}",
            f"median of {size.rounds} rounds of {size.seconds:g} s (lowest–highest round); CPU of "
            "a call, client and server together",
            "server",
            *("calls/s", "× best in Python", "p50, ms", "p99, ms", "CPU, µs"),
        )
        for line in found.lines:
            if line.callers == level.callers:
                table.add_row(
                    line.name,
                    line.calls_per_second.text(),
                    line.to_python.text() if line.to_python else "",
                    line.p50_seconds.text(1e3),
                    line.p99_seconds.text(1e3),
                    f"{line.cpu_seconds.median * 1e6:,.0f}",
                )
        paper.print(table)
    if found.peers:
        judged.show(paper, found.peers)
