"""What is printed: the machine, tables for people, one JSON object for programs."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import latency, startup
from benchmarks.figures import Goal, Spread
from benchmarks.models import Model

_PACKAGES = ("predictpool", "tensorflow", "numpy", "anyio", "trio", "uvloop")


@dataclass(frozen=True)
class Machine:
    """Where a run was made; nothing that tells whose machine it is."""

    cores: int
    processor: str
    memory_gigabytes: float
    system: str
    python: str
    packages: dict[str, str]


def machine() -> Machine:
    """Look at this machine."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_processor(),
        memory_gigabytes=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in _PACKAGES},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Run:
    """One run of a benchmark: when it began, and under which load."""

    def __init__(self, model: Model, quick: bool) -> None:
        self._model = model
        self._quick = quick
        self._began = time.monotonic()
        self._load = os.getloadavg()[0]

    def heading(self) -> dict[str, Any]:
        """Return what stands above the figures."""
        return {
            "model": self._model.name,
            "quick": self._quick,
            "seconds": round(time.monotonic() - self._began, 1),
            "load_before": round(self._load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "machine": asdict(machine()),
        }


def as_json(run: Run, benchmark: str, found: dict[str, Any], goals: Sequence[Goal]) -> str:
    """Return one JSON object; times are seconds, memory is bytes."""
    judged = [{**asdict(goal), "reached": goal.reached} for goal in goals]
    return json.dumps({"benchmark": benchmark, **run.heading(), **found, "goals": judged}, indent=2)


# --- for people --------------------------------------------------------------------


def show_run(console: Console, run: Run) -> None:
    """Print where and how the run was made."""
    heading = run.heading()
    where = heading["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    console.print(
        f"{where['cores']} cores, {where['processor']}, {where['memory_gigabytes']} GB, "
        f"{where['system']}; Python {where['python']}, {packages}\n"
        f"model: {heading['model']}{', QUICK: figures mean nothing' if heading['quick'] else ''}; "
        f"{heading['seconds']:.0f} s; load average {heading['load_before']} before, "
        f"{heading['load_after']} after",
        highlight=False,
    )


def show_latency(console: Console, size: latency.Size, lines: list[latency.Line]) -> None:
    """Print how long one row takes, each way."""
    table = Table(
        title="One row, one caller",
        caption=f"ms; median of {size.rounds} rounds of {size.calls} calls "
        f"(estimator.predict: {size.naive_calls}) (lowest–highest round)",
    )
    table.add_column("way")
    for column in ("p50", "p99", "p50 / hop floor", "p50 / in process"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            line.name,
            _spread(line.p50_seconds, 1e3),
            _spread(line.p99_seconds, 1e3),
            _spread(line.to_floor),
            _spread(line.to_in_process),
        )
    console.print(table)


def show_startup(console: Console, found: startup.Outcome) -> None:
    """Print how soon workers are ready and what they take."""
    table = Table(
        title="Until a worker is ready",
        caption=f"s; median of {found.rounds} rounds (lowest–highest round)",
    )
    table.add_column("worker")
    for column in ("first, with template", "second", "again after kill -9"):
        table.add_column(column, justify="right")
    for name, times in found.times.items():
        table.add_row(name, _spread(times.first), _spread(times.second), _spread(times.again))
    table.add_row("forked / afresh", "", _spread(found.second_to_afresh), "")
    table.add_row("forked / bare interpreter", "", _spread(found.second_to_bare), "")
    console.print(table)
    _show_memory(console, found)


def _show_memory(console: Console, found: startup.Outcome) -> None:
    table = Table(title="Memory", caption="PSS in MB; medians")
    table.add_column("workers are")
    for column in ("workers", "application", "template", "a worker", "… of its own", "all"):
        table.add_column(column, justify="right")
    table.add_column("all but the template", justify="right")
    for name, pools in found.memory.items():
        for pool in pools:
            sizes = (
                pool.application,
                pool.template,
                pool.worker,
                pool.worker_private,
                pool.total,
                pool.total_without_template,
            )
            table.add_row(name, str(pool.workers), *(f"{size / 1e6:,.0f}" for size in sizes))
    console.print(table)


def show_goals(console: Console, goals: Sequence[Goal]) -> None:
    """Print what was to be reached and whether it was."""
    for goal in goals:
        verdict = "reached" if goal.reached else "MISSED"
        console.print(f"{verdict}: {goal.name} = {goal.figure:.2f}, goal ≤ {goal.limit}")


def _spread(spread: Spread | None, scale: float = 1.0) -> str:
    if spread is None:
        return ""
    median, low, high = (
        f"{value * scale:.{0 if value * scale >= 100 else 2}f}"
        for value in (spread.median, spread.low, spread.high)
    )
    return f"{median} ({low}–{high})"
