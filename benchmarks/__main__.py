"""The command line: ``python -m benchmarks NAME``; ``--help`` has the names.

``python -m benchmarks environments`` is none of them: it installs the peers.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import (
    budget,
    contenders,
    encoding,
    harness,
    latency,
    models,
    overload,
    report,
    saved_models,
    soak,
    startup,
    throughput,
)
from benchmarks.figures import Goal
from benchmarks.models import Model
from benchmarks.peers import environments, judged
from predictpool import _census

QUICK_STEPS = 20
# How long each benchmark lasts; None where that is not for the caller to say.
MINUTES = {
    "latency": None,
    "throughput": None,
    "budget": None,
    "startup": None,
    "saved": None,
    "soak": 10.0,
    "overload": 1.0,
}


def main() -> None:
    """Run one benchmark, print what came of it."""
    if sys.argv[1:2] == ["environments"]:
        environments.main(sys.argv[2:], note)
        return
    options = parse()
    _census.silence()  # the processes that are started inherit it
    without_model = {"saved": measure_saved, "soak": measure_soak, "overload": measure_overload}
    if options.benchmark in without_model:
        without_model[options.benchmark](report.Run(None, options.quick), options)
    else:
        main_with_model(options)


def main_with_model(options: argparse.Namespace) -> None:
    """Train a model, run the benchmark that is about it."""
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as temporary:
        model = Model(options.model, str(options.model_dir or Path(temporary, "model")))
        note("training the model")
        harness.in_child(model.train, QUICK_STEPS if options.quick else _census.TRAINING_STEPS)
        run = report.Run(model, options.quick)
        measure = {
            "latency": measure_latency,
            "throughput": measure_throughput,
            "budget": measure_budget,
            "startup": measure_startup,
        }
        measure[options.benchmark](run, model, options)


def measure_latency(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``latency``."""
    size, lines = latency.run(model, quick=options.quick, note=note)
    goals = latency.goals(lines)
    if options.json:
        found = {"size": asdict(size), "contenders": [asdict(line) for line in lines]}
        print(report.as_json(run, "latency", found, goals))
        return
    paper = report.Paper(options.markdown)
    report.show_run(paper, run)
    report.show_latency(paper, size, lines)
    report.show_goals(paper, goals)


def measure_throughput(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``throughput``."""
    found = throughput.run(
        model,
        quick=options.quick,
        note=note,
        environments=None if options.quick else options.environments,
    )
    soundness = judged.soundness(found.peers)
    goals = [*throughput.goals(found), *soundness]
    tell(run, options, "throughput", found, goals, show=throughput.show)
    insist(soundness)


def measure_budget(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``budget``."""
    size, lines = budget.run(model, quick=options.quick, note=note)
    note("encoding")
    encoding_size, ways = encoding.run(quick=options.quick)
    if options.json:
        found = {
            "size": asdict(size),
            "contenders": [asdict(line) for line in lines],
            "encoding_size": asdict(encoding_size),
            "encoding": [asdict(way) for way in ways],
        }
        print(report.as_json(run, "budget", found, []))
        return
    paper = report.Paper(options.markdown)
    report.show_run(paper, run)
    report.show_budget(paper, size, lines)
    report.show_encoding(paper, encoding_size, ways)


def measure_startup(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``startup``."""
    outcome = startup.run(model, quick=options.quick, note=note)
    tell(run, options, "startup", outcome, startup.goals(outcome), show=report.show_startup)


def measure_saved(run: report.Run, options: argparse.Namespace) -> None:
    """Run ``saved``."""
    found = saved_models.run(options.model_dir, quick=options.quick, note=note)
    tell(run, options, "saved", found, [], show=report.show_saved)


def measure_soak(run: report.Run, options: argparse.Namespace) -> None:
    """Run ``soak``."""
    found = soak.run(
        minutes=options.minutes,
        loop=options.loop,
        seed=options.seed,
        quick=options.quick,
        note=note,
    )
    tell(run, options, "soak", found, soak.goals(found), show=report.show_soak)
    insist(soak.correctness(found))


def measure_overload(run: report.Run, options: argparse.Namespace) -> None:
    """Run ``overload``."""
    found = overload.run(
        seconds=options.minutes * 60, loop=options.loop, quick=options.quick, note=note
    )
    tell(run, options, "overload", found, overload.goals(found), show=report.show_overload)
    insist(overload.correctness(found))


def tell(
    run: report.Run,
    options: argparse.Namespace,
    name: str,
    found: Any,
    goals: list[Goal],
    *,
    show: Callable[[report.Paper, Any], None],
) -> None:
    """Print what a benchmark found, and which goals it reached."""
    if options.json:
        print(report.as_json(run, name, asdict(found), goals))
        return
    paper = report.Paper(options.markdown)
    report.show_run(paper, run)
    show(paper, found)
    report.show_goals(paper, goals)


def insist(goals: list[Goal]) -> None:
    """End with status 1 unless these are reached: no busy machine excuses them."""
    if not all(goal.reached for goal in goals):
        sys.exit(1)


def note(what: str) -> None:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=tuple(MINUTES))
    parser.add_argument(
        "--model", choices=models.NAMES, help="default: census, and small where --quick is given"
    )
    parser.add_argument(
        "--model-dir", type=Path, help="keep the trained model there, and take it if it is there"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for the docs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: the figures mean nothing"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=environments.DEFAULT,
        help="where throughput finds the peers that `environments` has installed; the quick run "
        "leaves them out (default: %(default)s)",
    )
    lasting = parser.add_argument_group("soak and overload, which need no model")
    lasting.add_argument("--minutes", type=float, help="default: 10 for soak, 1 for overload")
    lasting.add_argument("--loop", choices=contenders.LOOPS, default="asyncio")
    lasting.add_argument("--seed", type=int, default=1, help="of soak's chances")
    options = parser.parse_args()
    options.minutes = options.minutes or MINUTES[options.benchmark]
    options.model = options.model or ("small" if options.quick else "census")
    return options


if __name__ == "__main__":
    main()
