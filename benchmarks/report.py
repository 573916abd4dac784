"""What is printed: the machine, tables for people, one JSON object for programs."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import budget, encoding, latency, overload, saved_models, soak
from benchmarks.figures import Goal, Spread
from benchmarks.models import Model

WIDTH = 120
_PACKAGES = ("predictpool", "tensorflow", "torch", "jax", "numpy", "anyio", "trio", "uvloop")


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
        packages=dict(_versions()),
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # some need no TensorFlow
            yield name, metadata.version(name)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


class Paper:
    """Where tables go: a terminal, or a Markdown page."""

    def __init__(self, markdown: bool) -> None:
        # A page is as wide as it has to be: a row of Markdown cannot be broken.
        self._console = Console(width=2 * WIDTH if markdown else WIDTH, highlight=False)
        self._box = box.MARKDOWN if markdown else box.HEAVY_HEAD

    def print(self, what: object) -> None:
        """Print a table or a line, which is not broken: it may be pasted."""
        self._console.print(what, soft_wrap=isinstance(what, str))

    def table(self, title: str, caption: str, first: str, *columns: str) -> Table:
        """Return an empty table; all columns but the first hold figures."""
        table = Table(title=title, caption=caption, box=self._box)
        table.add_column(first, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        return table


class Run:
    """One run of a benchmark: when it began, and under which load.

    Args:
        model: the trained model, where the benchmark needs one.
    """

    def __init__(self, model: Model | None, quick: bool) -> None:
        self._model = model
        self._quick = quick
        self._began = time.monotonic()
        self._load = os.getloadavg()[0]

    def heading(self) -> dict[str, Any]:
        """Return what stands above the figures."""
        return {
            "model": self._model.name if self._model else None,
            "quick": self._quick,
            "seconds": round(time.monotonic() - self._began, 1),
            "load_before": round(self._load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "machine": asdict(machine()),
        }


def as_dict(
    run: Run, benchmark: str, found: dict[str, Any], goals: Sequence[Goal]
) -> dict[str, Any]:
    """Return what becomes one JSON object; times are seconds, memory is bytes."""
    judged = [{**asdict(goal), "reached": goal.reached} for goal in goals]
    return {"benchmark": benchmark, **run.heading(), **found, "goals": judged}


# --- for people --------------------------------------------------------------------


def show_run(paper: Paper, run: Run) -> None:
    """Print where and how the run was made."""
    heading = run.heading()
    where = heading["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    paper.print(
        f"{where['cores']} cores, {where['processor']}, {where['memory_gigabytes']} GB, "
        f"{where['system']}; Python {where['python']}, {packages}"
    )
    before, after = heading["load_before"], heading["load_after"]
    model = f"model: {heading['model']}; " if heading["model"] else ""
    paper.print(f"{model}{heading['seconds']:.0f} s; load average {before} before, {after} after")
    if heading["quick"]:
        paper.print("QUICK: the figures mean nothing")
    if max(before, after) > where["cores"]:
        paper.print(
            "BUSY: others used this machine meanwhile; a quiet one would show other figures"
        )


def show_latency(paper: Paper, size: latency.Size, lines: list[latency.Line]) -> None:
    """Print how long one row takes, each way."""
    table = paper.table(
        "One row, one caller",
        f"ms; median of {size.rounds} rounds of {size.calls} calls "
        f"(estimator.predict: {size.naive_calls}) (lowest–highest round)",
        "way",
        *("p50", "p99", "p50 / hop floor", "p50 / in process"),
    )
    for line in lines:
        table.add_row(
            line.name,
            _spread(line.p50_seconds, 1e3),
            _spread(line.p99_seconds, 1e3),
            _spread(line.to_floor),
            _spread(line.to_in_process),
        )
    paper.print(table)


def show_budget(paper: Paper, size: budget.Size, lines: list[budget.Line]) -> None:
    """Print where the time of one request goes."""
    table = paper.table(
        "Where the time of one request goes",
        f"µs; median of {size.rounds} rounds of {size.calls} calls (lowest–highest round)",
        "way",
        *("to the model", "in the model", "back", "sum of the medians"),
    )
    for line in lines:
        seconds = (line.to_model, line.in_model, line.back)
        whole = sum(span.median for span in seconds)
        table.add_row(line.name, *(_spread(span, 1e6) for span in seconds), f"{whole * 1e6:.0f}")
    paper.print(table)


def show_encoding(paper: Paper, size: encoding.Size, ways: list[encoding.Line]) -> None:
    """Print what a feature costs the application."""
    table = paper.table(
        "Checking and encoding, for each feature of a request",
        f"µs; {encoding.FEATURES} features; median of {size.rounds} rounds of {size.calls} calls "
        "(lowest–highest round)",
        "given as",
        *("rows", "float32", "text"),
    )
    for line in ways:
        table.add_row(line.way, str(line.rows), _spread(line.number, 1e6), _spread(line.text, 1e6))
    paper.print(table)


def show_saved(paper: Paper, found: saved_models.Outcome) -> None:
    """Print how long one row takes, in a session and as a function."""
    table = paper.table(
        "SavedModels, one row, one caller",
        f"median of {found.size.rounds} rounds of {found.size.calls} calls (lowest–highest round)",
        "model",
        *("where", "method", "p50, ms", "compared with the session", "load, s"),
    )
    for line in found.lines:
        table.add_row(
            line.model,
            line.where,
            line.method,
            _spread(line.p50_seconds, 1e3),
            "" if line.method == "session" else _spread(line.ratio),
            f"{line.load_seconds:.2f}",
        )
    paper.print(table)


def show_soak(paper: Paper, found: soak.Outcome) -> None:
    """Print how requests ended, what was done to workers, and what the application took."""
    _show_bins(paper, found)
    done = ", ".join(f"{count} {what}" for what, count in sorted(found.disturbances.items()))
    paper.print(f"done: {done}; restarts: {found.restarts}")
    if (recovery := found.recovery) is not None:
        median, p99, worst = (
            f"{seconds * 1e3:.0f} ms" for seconds in (recovery.median, recovery.p99, recovery.worst)
        )
        paper.print(
            f"from a kill to all workers ready: median {median}, p99 {p99}, worst {worst} "
            f"({recovery.count} kills)"
        )
    usage, growth = found.usage, found.growth
    paper.print(
        f"the application at the end: {usage.memory / 1e6:.1f} MB of its own "
        f"({growth.memory / 1e6:+.1f}), {usage.descriptors} file descriptors "
        f"({growth.descriptors:+}), {usage.threads} threads ({growth.threads:+}); "
        f"processes that outlived the pool: {found.processes_left}"
    )
    for title, texts in (
        ("the pool's statistics disagree", found.disagreements),
        ("unexpected", found.first_unexpected),
        ("broken", found.first_broken),
    ):
        for text in texts:
            paper.print(f"{title}: {text}")


def _show_bins(paper: Paper, found: soak.Outcome) -> None:
    table = paper.table(
        "How requests ended",
        f"{found.callers} callers, {found.workers} workers, {found.loop}, seed {found.seed}; "
        f"{found.rows:,} rows answered in {found.seconds:.0f} s",
        "requests",
        *("number", "per second"),
    )
    for name, count in (("sent", found.requests), *found.bins.items()):
        table.add_row(name, f"{count:,}", f"{count / found.seconds:,.1f}")
    paper.print(table)


def show_overload(paper: Paper, found: overload.Outcome) -> None:
    """Print what was served of what was offered, and how long it took."""
    table = paper.table(
        f"{overload.OVERLOAD:g} times what {found.workers} workers can do",
        f"a model of {found.cost * 1e3:g} ms, max_batch_size=1, max_waiting={found.max_waiting}, "
        f"{found.loop}; {found.seconds:g} s",
        "what",
        *("figure", "compared with"),
    )
    table.add_row("capacity, closed loop", f"{found.capacity:.1f} a second", "")
    for name in ("offered", "served", "refused"):
        rate = getattr(found, name)
        table.add_row(name, f"{rate:.1f} a second", f"{rate / found.capacity:.3f} × capacity")
    for name, count in found.expired.items():
        table.add_row(f"expired while {name}", f"{count:,}", "")
    table.add_row("expired, reached a worker", f"{found.expired_reached_worker}", "")
    for name in ("p50", "p99", "worst"):
        seconds = getattr(found, f"latency_{name}")
        compared = f"{seconds / found.bound:.2f} × bound of {found.bound * 1e3:.0f} ms"
        table.add_row(f"latency of served requests, {name}", f"{seconds * 1e3:.1f} ms", compared)
    for name in ("p50", "p99"):
        seconds = getattr(found, f"refusal_{name}")
        table.add_row(f"a refusal, {name}", f"{seconds * 1e6:.1f} µs", "")
    table.add_row("sent late, p99", f"{found.late_p99 * 1e3:.1f} ms", "")
    paper.print(table)


def show_goals(paper: Paper, goals: Sequence[Goal]) -> None:
    """Print what was to be reached and whether it was."""
    for goal in goals:
        verdict = "reached" if goal.reached else "MISSED"
        figure = f"{goal.figure:,}" if isinstance(goal.figure, int) else f"{goal.figure:.2f}"
        sign = "≥" if goal.at_least else "≤"
        aim = "" if goal.aim is None else f", aim {sign} {goal.aim:,}"
        paper.print(f"{verdict}: {goal.name} = {figure}, goal {sign} {goal.limit:,}{aim}")


def _spread(spread: Spread | None, scale: float = 1.0) -> str:
    return "" if spread is None else spread.text(scale)
