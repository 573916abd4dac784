"""``python -m benchmarks throughput``: many callers at once, of everything they could ask."""

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import contenders, harness, latency, load, models, open_loop, peers, services
from benchmarks.figures import Goal, Spread, ratios
from benchmarks.harness import Contender
from benchmarks.models import Model
from benchmarks.peers import judged
from benchmarks.peers.judged import Judged
from benchmarks.report import Paper
from benchmarks.services import Level, Service

Note = Callable[[str], None]

CHECKED_ROWS = 64
SEED = 1994

ALONE, FEW, MANY, LARGE = Level(1, 1), Level(64, 1), Level(256, 1), Level(16, 32)
LEVELS = (ALONE, FEW, MANY, LARGE)
# In process there is one caller: with one row, as many as large requests have, perfect batches.
PERFECT = Level(1, 64)
IN_PROCESS_LEVELS = (ALONE, Level(1, LARGE.rows), PERFECT)
LIMIT = "in process, generator"
PEERS_LOOP = "in process, generator, not pinned"  # as the peers' workers are
BY_HAND = "by hand"
POOL = "pool, generator, asyncio"
ECHO = "no pool: answered at once"


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        rounds: how many times each contender has its turn at each level.
        warm_up, seconds: of each turn, before the clock runs and while it does.
        workers: of everything that has workers.
        open_seconds: the same as ``seconds`` for the open loop.
    """

    rounds: int
    warm_up: float
    seconds: float
    workers: int
    open_seconds: float


FULL = Size(rounds=5, warm_up=0.3, seconds=1.0, workers=2, open_seconds=3.0)
QUICK = Size(rounds=2, warm_up=0.05, seconds=0.1, workers=1, open_seconds=0.3)


@dataclass(frozen=True)
class Line:
    """What came of one contender at one level; medians over the rounds, ratios round by round.

    Attributes:
        p50_seconds, p99_seconds, lag_p99_seconds: percentiles within a round; see `load.Outcome`.
        cpu_seconds: of all its processes together, for each call.
        to_loop: rows per second against the faster predictor that is called in a loop with as many
            rows at a time.
        to_limit: the same against the default method in process with perfect batches.
        to_by_hand: the same against the forty lines at the same level.
    """

    name: str
    kind: str
    loop: str | None
    callers: int
    rows: int
    calls_per_second: Spread
    p50_seconds: Spread
    p99_seconds: Spread
    lag_p99_seconds: Spread | None
    cpu_seconds: Spread
    to_loop: Spread | None
    to_limit: Spread
    to_by_hand: Spread | None


@dataclass(frozen=True)
class OpenLine:
    """What came of one contender in the open loop; see `open_loop.Outcome`.

    Attributes:
        sent, refused: requests of all rounds.
    """

    name: str
    rate: float
    sent: int
    refused: int
    p50_seconds: Spread
    p99_seconds: Spread
    late_p99_seconds: Spread
    generator_cores: Spread
    p99_to_p50: Spread


@dataclass(frozen=True)
class Found:
    """What the benchmark found.

    Attributes:
        peers: which took part, and whether as they should.
    """

    size: Size
    lines: list[Line]
    open_lines: list[OpenLine]
    peers: list[Judged]

    def line(self, name: str, level: Level) -> Line:
        """Return the line of one contender at one level."""
        (found,) = (
            line
            for line in self.lines
            if (line.name, line.callers, line.rows) == (name, level.callers, level.rows)
        )
        return found


Outcomes = dict[tuple[str, Level], list[load.Outcome]]


def listed(quick: bool, workers: int) -> list[Service]:
    """Return the contenders that have workers; the quick run leaves out what differs little."""

    def service(name: str, kind: services.Kind, opened: Any, **how: Any) -> Service:
        opened = functools.partial(opened, **{"method": "generator", "workers": workers, **how})
        return Service(name, kind, opened)

    found = [
        service("ProcessPoolExecutor", "process pool", services.process_pool),
        service("anyio.to_process", "process pool", services.to_process),
        service(BY_HAND, "by hand", services.micro_batcher),
        service(POOL, "pool", services.pool),
    ]
    if quick:
        return found
    found.insert(3, service("by hand, pinned", "by hand", services.micro_batcher, pinned=True))
    found.append(service("pool, session, asyncio", "pool", services.pool, method="session"))
    for loop in contenders.LOOPS[1:]:
        opened = functools.partial(services.pool, method="generator", workers=workers)
        found.append(Service(f"pool, generator, {loop}", "pool", opened, loop))
    return found


def run(model: Model, *, quick: bool, note: Note, environments: Path | None = None) -> Found:
    """Start every contender, compare their answers, and let them work in turn.

    Args:
        environments: where those of the peers are; None leaves the peers out.

    Raises:
        ContenderFailed: one failed, or answered something else than the predictor in process.
    """
    size = QUICK if quick else FULL
    there, looked = peers.installed(environments) if environments else ([], {})
    asked = listed(quick, size.workers)
    started: dict[str, Contender] = {}
    with harness.all_ended(started.values()):
        for method in models.METHODS:
            name = f"in process, {method}"
            started[name] = Contender(name, services.serve_in_process, method, model)
        if there:
            unpinned = functools.partial(services.serve_in_process, pinned=False)
            started[PEERS_LOOP] = Contender(PEERS_LOOP, unpinned, "generator", model)
        in_process = list(started)
        for service in asked:
            started[service.name] = service.start(model)
        for name, contender in started.items():
            note(f"starting: {name}")
            contender.result()
        failed = peers.start(there, model, note, started)
        asked += [peer for peer in there if peer.name in started]
        check(started, LIMIT)
        turns = [(name, level) for level in IN_PROCESS_LEVELS for name in in_process]
        turns += [(service.name, level) for level in LEVELS for service in asked]
        outcomes: Outcomes = {turn: [] for turn in turns}
        for number in range(size.rounds):
            take_turns(started, outcomes, number, size, note)
        open_lines = measure_open(started, model, outcomes, size, note)
    taken_part = (
        judged.judge(looked, failed, speeds_of(outcomes), PEERS_LOOP) if environments else []
    )
    return Found(size, sum_up(outcomes, asked), open_lines, taken_part)


def take_turns(
    started: dict[str, Contender], outcomes: Outcomes, number: int, size: Size, note: Note
) -> None:
    """Let each contender have one turn at each of its levels; in the next round others begin."""
    note(f"round {number + 1} of {size.rounds}")
    for level in dict.fromkeys(level for _, level in outcomes):
        names = [name for name, at in outcomes if at == level]
        for name in harness.in_turn(names, number):
            outcome = started[name].order("load", level, size.seconds, size.warm_up)
            outcomes[name, level].append(outcome)


def check(started: dict[str, Contender], in_process: str) -> None:
    """Raise `harness.ContenderFailed` unless all answer like the predictor in process.

    As many callers ask at once as there are rows, so batches are answered too.
    """
    expected = started[in_process].order("answer", CHECKED_ROWS)
    for name, contender in started.items():
        answers = contender.order("answer", CHECKED_ROWS)
        for row, (given, wanted) in enumerate(zip(answers, expected, strict=True)):
            if not latency.same(given, wanted):
                raise harness.ContenderFailed(
                    f"{name} answered row {row} with {given}, expected {wanted}"
                )


# --- the open loop -----------------------------------------------------------------


def measure_open(
    started: dict[str, Contender], model: Model, outcomes: Outcomes, size: Size, note: Note
) -> list[OpenLine]:
    """Offer the pool half of what it did in the closed loop; and see what the offering takes."""
    rate = Spread.of(each.calls_per_second for each in outcomes[POOL, MANY]).median / 2
    echo = Contender(ECHO, services.serve, Service(ECHO, "nothing", services.echo), model)
    generator = Contender("generator", open_loop.serve_generator)
    applications = {POOL: started[POOL], BY_HAND: started[BY_HAND], ECHO: echo}
    found: dict[str, list[open_loop.Outcome]] = {name: [] for name in applications}
    with (
        harness.all_ended([generator, echo]),
        tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as directory,
    ):
        echo.result()
        generator.result()
        for number in range(size.rounds):
            note(f"open loop, round {number + 1} of {size.rounds}")
            for name, application in applications.items():
                path = str(Path(directory, f"{number}"))
                application.order("listen", path)
                order = (path, rate, size.open_seconds, size.warm_up, SEED + number)
                found[name].append(generator.order(*order))
                application.order("close")
                Path(path).unlink()
    return [sum_up_open(name, rounds) for name, rounds in found.items()]


def sum_up_open(name: str, rounds: list[open_loop.Outcome]) -> OpenLine:
    """Return what came of one contender in the open loop."""
    p50, p99 = [each.p50_seconds for each in rounds], [each.p99_seconds for each in rounds]
    return OpenLine(
        name,
        rounds[0].rate,
        sum(each.sent for each in rounds),
        sum(each.refused for each in rounds),
        Spread.of(p50),
        Spread.of(p99),
        Spread.of(each.late_p99_seconds for each in rounds),
        Spread.of(each.generator_cores for each in rounds),
        ratios(p99, p50),
    )


# --- what came of it ---------------------------------------------------------------


def sum_up(outcomes: Outcomes, asked: list[Service]) -> list[Line]:
    """Return what came of every contender at every level."""
    speeds = {
        (name, level): [speed * level.rows for speed in rounds]
        for (name, level), rounds in speeds_of(outcomes).items()
    }
    loops: dict[int, list[float]] = {}
    for (name, level), speed in speeds.items():
        if name.startswith("in process") and level != PERFECT:
            loops[level.rows] = max(loops.get(level.rows, speed), speed, key=statistics.median)
    services_by_name = {service.name: service for service in asked}
    lines = []
    for (name, level), rounds in outcomes.items():
        service = services_by_name.get(name)
        speed = speeds[name, level]
        lags = [each.lag_p99_seconds for each in rounds if each.lag_p99_seconds is not None]
        line = Line(
            name,
            service.kind if service else "in process",
            service.loop if service else None,
            level.callers,
            level.rows,
            Spread.of(each.calls_per_second for each in rounds),
            Spread.of(each.p50_seconds for each in rounds),
            Spread.of(each.p99_seconds for each in rounds),
            Spread.of(lags) if lags else None,
            Spread.of(each.cpu_seconds / each.calls for each in rounds),
            ratios(speed, loops[level.rows]) if level.rows in loops else None,
            ratios(speed, speeds[LIMIT, PERFECT]),
            ratios(speed, speeds[BY_HAND, level]) if service and name != BY_HAND else None,
        )
        lines.append(line)
    return lines


def speeds_of(outcomes: Outcomes) -> dict[tuple[str, Level], list[float]]:
    """Return calls per second, round by round."""
    return {turn: [each.calls_per_second for each in rounds] for turn, rounds in outcomes.items()}


def goals(found: Found) -> list[Goal]:
    """Compare the pool, by its default method and on asyncio, with what it must and may reach."""
    few, many = found.line(POOL, FEW), found.line(POOL, MANY)
    assert many.to_loop is not None
    assert many.to_by_hand is not None
    assert few.to_by_hand is not None
    assert many.lag_p99_seconds is not None
    speed = many.calls_per_second.median
    plain = max(
        line.calls_per_second.median
        for line in found.lines
        if line.kind == "process pool" and line.callers == MANY.callers
    )
    (opened,) = (line for line in found.open_lines if line.name == POOL)
    named = f"{POOL}, {MANY.callers} callers"
    by_hand = (
        (f"{POOL}, {FEW.callers} callers: calls/s / by hand", few.to_by_hand),
        (f"{named}: calls/s / by hand", many.to_by_hand),
    )
    return [
        Goal(f"{named}: calls/s / loop", many.to_loop.median, 25, at_least=True, aim=40),
        *(Goal(name, ratio.median, 1, at_least=True, aim=1.5) for name, ratio in by_hand),
        Goal(f"{named}: calls/s / plain process pool", speed / plain, 10, at_least=True, aim=20),
        Goal(f"{named}: share of the limit", many.to_limit.median, 0.4, at_least=True, aim=0.6),
        Goal(f"{named}: p99 in ms", many.p99_seconds.median * 1e3, 30, aim=15),
        Goal(f"{named}: lag p99 in ms", many.lag_p99_seconds.median * 1e3, 8, aim=4),
        Goal("open loop: p99 / p50", opened.p99_to_p50.median, 6, aim=4),
        Goal("open loop: requests refused", opened.refused, 0),
    ]


def show(paper: Paper, found: Found) -> None:
    """Print how much each contender answers in a second, and how soon."""
    size = found.size
    for level in LEVELS:
        table = paper.table(
            level.name,
            f"median of {size.rounds} rounds of {size.seconds:g} s (lowest–highest round); p99 of "
            "a call, of the event loop's lag; CPU of a call",
            "asked",
            *("rows/s", "× loop", "× by hand", "× limit", "p99, ms", "lag, ms", "CPU, µs"),
        )
        for line in _compared(found, level):
            table.add_row(
                line.name if line.rows == level.rows else f"perfect batches of {line.rows}",
                line.calls_per_second.text(line.rows),
                _number(line.to_loop),
                _text(line.to_by_hand),
                _number(line.to_limit),
                _number(line.p99_seconds, 1e3),
                _number(line.lag_p99_seconds, 1e3),
                _number(line.cpu_seconds, 1e6),
            )
        paper.print(table)
    _show_open(paper, found)
    if found.peers:
        judged.show(paper, found.peers)


def _compared(found: Found, level: Level) -> list[Line]:
    """Return the lines of a level, below those in process that they are compared with."""
    alone = [line for line in found.lines if line.kind == "in process"]
    limit = [line for line in alone if line.name == LIMIT and line.rows == PERFECT.rows]
    others = [
        line
        for line in found.lines
        if line.kind != "in process" and (line.callers, line.rows) == (level.callers, level.rows)
    ]
    return [*limit, *(line for line in alone if line.rows == level.rows), *others]


def _show_open(paper: Paper, found: Found) -> None:
    table = paper.table(
        "Open loop",
        f"{found.open_lines[0].rate:,.0f} requests a second, half of the pool's closed loop; ms; "
        f"median of {found.size.rounds} rounds of {found.size.open_seconds:g} s "
        "(lowest–highest round)",
        "asked",
        *("p50", "p99", "p99 / p50", "sent late, p99", "refused", "generator"),
    )
    for line in found.open_lines:
        table.add_row(
            line.name,
            line.p50_seconds.text(1e3),
            line.p99_seconds.text(1e3),
            line.p99_to_p50.text(),
            line.late_p99_seconds.text(1e3),
            f"{line.refused:,} of {line.sent:,}",
            f"{_number(line.generator_cores)} cores",
        )
    paper.print(table)


def _text(spread: Spread | None) -> str:
    return "" if spread is None else spread.text()


def _number(spread: Spread | None, scale: float = 1.0) -> str:
    if spread is None:
        return ""
    value = spread.median * scale
    return f"{value:,.{0 if value >= 100 else 2}f}"
