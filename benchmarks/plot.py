"""``python -m benchmarks.plot FOUND.json PICTURE.svg``: draws what a benchmark has found.

It takes what ``--json`` prints. Pictures are for pages with a light or a dark background: theirs is
transparent, and their text of a grey that both leave readable. matplotlib is imported only here.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import figures

GREY = "#797979"  # as far from white as from black
OURS, OTHERS, LIMIT = "#2f8fd0", "#a3a3a3", "#d08a2f"
_SHADES = {  # of curves of one colour
    OURS: ("#2f8fd0", "#5bb3c9", "#7f86e0", "#2a9d8f", "#3d6fd6"),
    OTHERS: ("#a3a3a3", "#7d7d7d", "#b59a9a"),
    LIMIT: ("#d08a2f", "#e0b060", "#b5602c"),
}
_STYLE: Any = {  # not every matplotlib has a type for it
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "font.size": 9.5,
    "svg.fonttype": "none",  # text, not outlines: a third of the size
    "svg.hashsalt": "predictpool",  # the same figures make the same file
}
_LIMITS = ("hop floor", "raw socket", "in process", "nothing")
_WIDTH = 8.0
_BAR, _FRAME = 0.27, 1.1

Found = dict[str, Any]


def draw(found: Found, picture: Path) -> None:
    """Draw the findings of one benchmark.

    Args:
        found: one of the objects that ``--json`` prints.
        picture: where to; its suffix says what it becomes, ``.svg`` or ``.png``.

    Raises:
        KeyError: this benchmark has no picture; see `DRAWN`.
    """
    with mpl.rc_context(_STYLE):
        figure = DRAWN[found["benchmark"]](found)
        if found["quick"]:
            figure.text(0.5, 0.5, "QUICK", fontsize=60, alpha=0.2, ha="center", va="center")
        figure.savefig(picture, transparent=True, dpi=160, metadata=_undated(picture))


def _undated(picture: Path) -> dict[str, Any]:
    return {"Date": None} if picture.suffix == ".svg" else {}


# --- a picture each ----------------------------------------------------------------


def _latency(found: Found) -> Figure:
    lines = found["contenders"]
    figure, (axes,) = _panels(len(lines), 1)
    _title(axes, "One row, one caller: median, ms")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    _dots(axes, lines, "p50_seconds", 1e3)
    return figure


def _throughput(found: Found) -> Figure:
    levels = [(callers, 1) for callers in (64, 256)]
    shown = [
        [line for line in found["lines"] if (line["callers"], line["rows"]) == level]
        for level in levels
    ]
    figure, panels = _panels(max(map(len, shown)), len(levels))
    for axes, lines, (callers, _) in zip(panels, shown, levels, strict=True):
        _title(axes, f"One row each, {callers} callers: calls/s")
        _bars(axes, lines, "calls_per_second", 1.0)
    return figure


def _echo(found: Found) -> Figure:
    figure = Figure((_WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    _title(axes, "An echo, one caller: median, µs")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _curves(axes, found["lines"], lambda line: line["p50_seconds"]["median"] * 1e6)
    return figure


def _large(found: Found) -> Figure:
    figure = Figure((_WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    _title(axes, "One large array to a worker, a number back: GB/s")
    lines = [line for line in found["lines"] if line["direction"] == "in"]
    _curves(axes, lines, lambda line: line["bytes"] / line["p50_seconds"]["median"] / 1e9)
    axes.set_ylim(bottom=0)
    return figure


def _startup(found: Found) -> Figure:
    kinds = {"second": "Second worker ready, s", "again": "Ready again after kill -9, s"}
    figure, panels = _panels(len(found["times"]), len(kinds))
    for axes, (kind, title) in zip(panels, kinds.items(), strict=True):
        _title(axes, title)
        lines = [
            {
                "name": name,
                "kind": "pool" if name == "forked" else "other",
                kind: times[kind] or times["second"],  # a bare interpreter has no other time
            }
            for name, times in found["times"].items()
        ]
        _bars(axes, lines, kind, 1.0, digits=2)
    return figure


def _memory(found: Found) -> Figure:
    pools = [(start, pool) for start, pools in found["pools"].items() for pool in pools]
    figure, (axes,) = _panels(len(pools) + 1, 1)
    _title(axes, "Memory of all processes, PSS in MB")
    names = [f"{pool['workers']} workers, {start}" for start, pool in pools]
    begin = [0.0] * len(pools)
    for part, colour in (("application", LIMIT), ("template", OTHERS), ("workers", OURS)):
        sizes = [_part(pool, part) / 1e6 for _, pool in pools]
        axes.barh(names, sizes, left=begin, color=colour, label=part, height=0.65)
        begin = [left + size for left, size in zip(begin, sizes, strict=True)]
    for name, total in zip(names, begin, strict=True):
        axes.annotate(f" {total:,.0f}", (total, name), va="center")
    axes.margins(x=0.1)
    axes.invert_yaxis()
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def _part(pool: Found, part: str) -> float:
    if part == "workers":
        return float(pool["total_without_template"] - pool["application"])
    return float(pool[part])


DRAWN: dict[str, Callable[[Found], Figure]] = {
    "latency": _latency,
    "throughput": _throughput,
    "echo": _echo,
    "large": _large,
    "startup": _startup,
    "memory": _memory,
}


# --- what they are made of ---------------------------------------------------------


def _panels(lines: int, count: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels side by side that share the names on the left."""
    figure = Figure((_WIDTH, _FRAME + _BAR * lines), layout="constrained")
    return figure, figure.subplots(1, count, sharey=True, squeeze=False)[0]


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)


def _colour(line: Found) -> str:
    kind = str(line["kind"])
    return OURS if kind == "pool" else LIMIT if kind in _LIMITS else OTHERS


def _bars(axes: Axes, lines: list[Found], key: str, scale: float, digits: int = 0) -> None:
    """Draw a bar for each line, and how far its rounds were apart."""
    names = [line["name"] for line in lines]
    medians = [line[key]["median"] * scale for line in lines]
    axes.barh(names, medians, color=list(map(_colour, lines)), height=0.65)
    axes.hlines(
        names,
        [line[key]["low"] * scale for line in lines],
        [line[key]["high"] * scale for line in lines],
        color=GREY,
    )
    for line, median in zip(lines, medians, strict=True):
        end = max(median, line[key]["high"] * scale)
        axes.annotate(f" {median:,.{digits}f}", (end, line["name"]), va="center")
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.locator_params(axis="x", nbins=5)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()


def _dots(axes: Axes, lines: list[Found], key: str, scale: float) -> None:
    """Draw a dot for each line, as a logarithmic axis has no nought for a bar to begin at."""
    for line in lines:
        median, low, high = (line[key][name] * scale for name in ("median", "low", "high"))
        axes.hlines(line["name"], low, high, color=_colour(line), linewidth=2)
        axes.plot(median, line["name"], "o", color=_colour(line))
        axes.annotate(f"  {median:.3g}", (high, line["name"]), va="center")
    axes.grid(axis="x")
    axes.margins(x=0.1)
    axes.invert_yaxis()


def _curves(axes: Axes, lines: list[Found], value: Callable[[Found], float]) -> None:
    """Draw a curve over the number of bytes for each name."""
    markers = itertools.cycle("osv^Dx+*<>")
    shades = {colour: itertools.cycle(several) for colour, several in _SHADES.items()}
    for name in dict.fromkeys(line["name"] for line in lines):
        taken = [line for line in lines if line["name"] == name]
        axes.plot(
            [line["bytes"] for line in taken],
            [value(line) for line in taken],
            marker=next(markers),
            color=next(shades[_colour(taken[0])]),
            linestyle="--" if taken[0]["kind"] in _LIMITS else "-",
            label=name,
        )
    sizes = list(dict.fromkeys(line["bytes"] for line in lines))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [figures.bytes_text(size) for size in sizes])
    axes.grid()
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def main() -> None:
    """Draw what a file holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("found", type=Path, help="what `python -m benchmarks ... --json` printed")
    parser.add_argument("picture", type=Path, help=".svg or .png; several have their names added")
    options = parser.parse_args()
    found = json.loads(options.found.read_text())
    draw_all(found.get("benchmarks") or {found["benchmark"]: found}, options.picture)


def draw_all(everything: dict[str, Found], picture: Path) -> None:
    """Draw what can be drawn; of several, each picture has its benchmark's name at the end."""
    for name, found in everything.items():
        path = picture.with_stem(f"{picture.stem}-{name}") if len(everything) > 1 else picture
        if name in DRAWN:
            draw(found, path)
            print(f"drawn: {path}", file=sys.stderr)
        else:
            print(f"{name} has no picture", file=sys.stderr)


if __name__ == "__main__":
    main()
