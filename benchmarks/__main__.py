"""The command line: ``python -m benchmarks latency`` and ``python -m benchmarks startup``."""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import harness, latency, models, report, startup
from benchmarks.models import Model
from predictpool import _census

QUICK_STEPS = 20


def main() -> None:
    """Train a model, run one benchmark, print what came of it."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as temporary:
        model = Model(options.model, str(options.model_dir or Path(temporary, "model")))
        note("training the model")
        harness.in_child(model.train, QUICK_STEPS if options.quick else _census.TRAINING_STEPS)
        run = report.Run(model, options.quick)
        if options.benchmark == "latency":
            measure_latency(run, model, options)
        else:
            measure_startup(run, model, options)


def measure_latency(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``latency``."""
    size, lines = latency.run(model, quick=options.quick, note=note)
    goals = latency.goals(lines)
    if options.json:
        found = {"size": asdict(size), "contenders": [asdict(line) for line in lines]}
        print(report.as_json(run, "latency", found, goals))
        return
    console = Console()
    report.show_run(console, run)
    report.show_latency(console, size, lines)
    report.show_goals(console, goals)


def measure_startup(run: report.Run, model: Model, options: argparse.Namespace) -> None:
    """Run ``startup``."""
    outcome = startup.run(model, quick=options.quick, note=note)
    goals = startup.goals(outcome)
    if options.json:
        print(report.as_json(run, "startup", asdict(outcome), goals))
        return
    console = Console()
    report.show_run(console, run)
    report.show_startup(console, outcome)
    report.show_goals(console, goals)


def note(what: str) -> None:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=("latency", "startup"))
    parser.add_argument("--model", choices=models.NAMES, default="census")
    parser.add_argument(
        "--model-dir", type=Path, help="keep the trained model there, and take it if it is there"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: the figures mean nothing"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
