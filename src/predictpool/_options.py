"""Options and arguments of the command line that several commands have alike."""

from typing import Annotated

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:PREDICTOR",
        help="The predictor, as in models.income:predictor; the current directory is on "
        "Python's path.",
    ),
]
StartTimeout = Annotated[
    float, typer.Option(min=0.0, help="Seconds for each worker to start, load and warm up.")
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Show tracebacks, and what the module and the workers write."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; times are in seconds.")
]
