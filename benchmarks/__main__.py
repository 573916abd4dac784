"""The command line: ``python -m benchmarks NAME``, several or ``all``; ``--help`` has the names.

``python -m benchmarks environments`` is none of them: it installs the peers.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    budget,
    contenders,
    echo,
    encoding,
    gpu,
    harness,
    large,
    latency,
    memory,
    models,
    on_ray,
    overload,
    report,
    routing,
    saved_models,
    scaling,
    serve,
    soak,
    startup,
    steps,
    throughput,
)
from benchmarks.figures import Goal
from benchmarks.models import Model
from benchmarks.peers import environments, judged, starter
from benchmarks.report import Paper
from predictpool import _census

QUICK_STEPS = 20
Options = argparse.Namespace


@dataclass(frozen=True)
class Measured:
    """What came of one benchmark.

    Attributes:
        found: what ``--json`` prints.
        show: prints the same for people.
        promises: goals that no busy machine excuses.
    """

    found: dict[str, Any]
    goals: list[Goal]
    show: Callable[[Paper], None]
    promises: list[Goal]


def main() -> None:
    """Run benchmarks one after the other, print what came of them."""
    if sys.argv[1:2] == ["environments"]:
        environments.main(sys.argv[2:], note)
        return
    options = parse()
    _census.silence()  # the processes that are started inherit it
    names = list(MEASURES) if "all" in options.benchmarks else options.benchmarks
    everything, kept = {}, True
    with trained(options, any(name in WITH_MODEL for name in names)) as model:
        for name in names:
            run = report.Run(model if name in WITH_MODEL else None, options.quick)
            measured = MEASURES[name](model, options)
            everything[name] = report.as_dict(run, name, measured.found, measured.goals)
            if not options.json:
                paper = Paper(options.markdown)
                report.show_run(paper, run)
                measured.show(paper)
                report.show_goals(paper, measured.goals)
            kept = kept and all(goal.reached for goal in measured.promises)
    if options.json:
        one = everything[names[0]] if len(names) == 1 else {"benchmarks": everything}
        print(json.dumps(one, indent=2))
    if options.plot:
        from benchmarks import plot

        plot.draw_all(everything, options.plot)
    if not kept:
        sys.exit(1)


@contextlib.contextmanager
def trained(options: Options, wanted: bool) -> Iterator[Model]:
    """Train the model, if a benchmark wants it."""
    with tempfile.TemporaryDirectory(prefix="predictpool-benchmarks-") as temporary:
        model = Model(options.model, str(options.model_dir or Path(temporary, "model")))
        if wanted:
            note("training the model")
            harness.in_child(model.train, QUICK_STEPS if options.quick else _census.TRAINING_STEPS)
        yield model


# --- one benchmark each ------------------------------------------------------------


def measure_latency(model: Model, options: Options) -> Measured:
    """Run ``latency``."""
    size, lines = latency.run(model, quick=options.quick, note=note)
    return Measured(
        {"size": asdict(size), "contenders": [asdict(line) for line in lines]},
        latency.goals(lines),
        lambda paper: report.show_latency(paper, size, lines),
        [],
    )


def measure_throughput(model: Model, options: Options) -> Measured:
    """Run ``throughput``."""
    found = throughput.run(
        model,
        quick=options.quick,
        note=note,
        environments=None if options.quick else options.environments,
    )
    soundness = judged.soundness(found.peers)
    return measured(found, [*throughput.goals(found), *soundness], throughput.show, soundness)


def measure_serve(model: Model, options: Options) -> Measured:
    """Run ``serve``."""
    found = serve.run(
        model,
        quick=options.quick,
        note=note,
        environments=None if options.quick else options.environments,
    )
    soundness = judged.soundness(found.peers)
    return measured(found, [*serve.goals(found), *soundness], serve.show, soundness)


def measure_budget(model: Model, options: Options) -> Measured:
    """Run ``budget``."""
    size, lines = budget.run(model, quick=options.quick, note=note)
    note("encoding")
    encoding_size, ways = encoding.run(quick=options.quick)
    taken = steps.run(quick=options.quick, note=note)

    def show(paper: Paper) -> None:
        report.show_budget(paper, size, lines)
        report.show_encoding(paper, encoding_size, ways)
        steps.show(paper, taken)

    found = {
        "size": asdict(size),
        "contenders": [asdict(line) for line in lines],
        "encoding_size": asdict(encoding_size),
        "encoding": [asdict(way) for way in ways],
        "steps": asdict(taken),
    }
    return Measured(found, [], show, [])


def measure_echo(_: Model, options: Options) -> Measured:
    """Run ``echo``."""
    found = echo.run(quick=options.quick, note=note)
    return measured(found, echo.goals(found), echo.show)


def measure_large(_: Model, options: Options) -> Measured:
    """Run ``large``."""
    ray = None if options.quick else starter("ray", options.environments)
    found = large.run(quick=options.quick, note=note, ray=ray)
    return measured(found, large.goals(found), large.show)


def measure_gpu(_: Model, options: Options) -> Measured:
    """Run ``gpu``."""
    found = gpu.run(quick=options.quick, note=note)
    return measured(found, [], gpu.show)


def measure_ray(_: Model, options: Options) -> Measured:
    """Run ``ray``."""
    found = on_ray.run(quick=options.quick, note=note)
    return measured(found, on_ray.goals(found), on_ray.show, on_ray.promises(found))


def measure_scaling(_: Model, options: Options) -> Measured:
    """Run ``scaling``."""
    found = scaling.run(quick=options.quick, note=note)
    return measured(found, [], scaling.show)


def measure_startup(model: Model, options: Options) -> Measured:
    """Run ``startup``."""
    found = startup.run(model, quick=options.quick, note=note)
    return measured(found, startup.goals(found), startup.show)


def measure_memory(model: Model, options: Options) -> Measured:
    """Run ``memory``."""
    found = memory.run(model, quick=options.quick, note=note)
    return measured(found, memory.goals(found), memory.show)


def measure_saved(_: Model, options: Options) -> Measured:
    """Run ``saved``."""
    found = saved_models.run(options.model_dir, quick=options.quick, note=note)
    return measured(found, [], report.show_saved)


def measure_routing(_: Model, options: Options) -> Measured:
    """Run ``routing``."""
    found = routing.run(quick=options.quick, note=note)
    goals = routing.goals(found)
    return measured(found, goals, routing.show, goals)


def measure_soak(_: Model, options: Options) -> Measured:
    """Run ``soak``."""
    found = soak.run(
        minutes=options.minutes or soak.MINUTES,
        loop=options.loop,
        seed=options.seed,
        quick=options.quick,
        note=note,
    )
    return measured(found, soak.goals(found), report.show_soak, soak.correctness(found))


def measure_overload(_: Model, options: Options) -> Measured:
    """Run ``overload``."""
    found = overload.run(
        seconds=60 * (options.minutes or overload.MINUTES),
        loop=options.loop,
        quick=options.quick,
        note=note,
    )
    return measured(found, overload.goals(found), report.show_overload, overload.correctness(found))


def measured(
    found: Any,
    goals: list[Goal],
    show: Callable[[Paper, Any], None],
    promises: list[Goal] | None = None,
) -> Measured:
    """Return what came of a benchmark whose findings are one dataclass."""
    return Measured(asdict(found), goals, lambda paper: show(paper, found), promises or [])


MEASURES: dict[str, Callable[[Model, Options], Measured]] = {
    "latency": measure_latency,
    "throughput": measure_throughput,
    "serve": measure_serve,
    "budget": measure_budget,
    "echo": measure_echo,
    "large": measure_large,
    "gpu": measure_gpu,
    "ray": measure_ray,
    "scaling": measure_scaling,
    "startup": measure_startup,
    "memory": measure_memory,
    "saved": measure_saved,
    "routing": measure_routing,
    "overload": measure_overload,
    "soak": measure_soak,
}
WITH_MODEL = ("latency", "throughput", "serve", "budget", "startup", "memory")


def note(what: str) -> None:
    """Say on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)


def parse() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "benchmarks",
        metavar="benchmark",
        nargs="+",
        choices=(*MEASURES, "all"),
        help=f"{', '.join(MEASURES)}; several run one after the other, or all",
    )
    parser.add_argument(
        "--model", choices=models.NAMES, help="default: census, and small where --quick is given"
    )
    parser.add_argument(
        "--model-dir", type=Path, help="keep the trained model there, and take it if it is there"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for the docs")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, which benchmarks.plot can draw"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PICTURE",
        help="draw what was found, as .svg or .png; several have their names added",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: the figures mean nothing"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=environments.DEFAULT,
        help="where throughput, serve and large find the peers that `environments` has installed; "
        "the quick run leaves them out (default: %(default)s)",
    )
    lasting = parser.add_argument_group("soak and overload, which need no model")
    lasting.add_argument("--minutes", type=float, help="default: 10 for soak, 1 for overload")
    lasting.add_argument("--loop", choices=contenders.LOOPS, default="asyncio")
    lasting.add_argument("--seed", type=int, default=1, help="of soak's chances")
    options = parser.parse_args()
    options.model = options.model or ("small" if options.quick else "census")
    return options


if __name__ == "__main__":
    main()
