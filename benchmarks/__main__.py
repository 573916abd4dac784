"""The command line: ``python -m benchmarks [latency|budget|startup]``."""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import budget, harness, latency, models, report, startup
from benchmarks.models import Model
from predictpool import _census

QUICK_STEPS = 20


def main() -> None:
    """Train a model, run one benchmark, print what came of it."""
    options = parse()
    _census.silence()  # the processes that are started inherit it
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as temporary:
        model = Model(options.model, str(options.model_dir or Path(temporary, "model")))
        note("training the model")
        harness.in_child(model.train, QUICK_STEPS if options.quick else _census.TRAINING_STEPS)
        run = report.Run(model, options.quick)
        measure = {
            "latency": measure_latency,
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


def measure_budget(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``budget``."""
    size, lines = budget.run(model, quick=options.quick, note=note)
    if options.json:
        found = {"size": asdict(size), "contenders": [asdict(line) for line in lines]}
        print(report.as_json(run, "budget", found, []))
        return
    paper = report.Paper(options.markdown)
    report.show_run(paper, run)
    report.show_budget(paper, size, lines)


def measure_startup(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``startup``."""
    outcome = startup.run(model, quick=options.quick, note=note)
    goals = startup.goals(outcome)
    if options.json:
        print(report.as_json(run, "startup", asdict(outcome), goals))
        return
    paper = report.Paper(options.markdown)
    report.show_run(paper, run)
    report.show_startup(paper, outcome)
    report.show_goals(paper, goals)


def note(what: str) -> None:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=("latency", "budget", "startup"))
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
    options = parser.parse_args()
    options.model = options.model or ("small" if options.quick else "census")
    return options


if __name__ == "__main__":
    main()
