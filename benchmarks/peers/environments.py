"""``python -m benchmarks environments [NAME ...]``: one environment for each peer's package.

Each is a virtual environment of the running Python, with the TensorFlow of the running
environment, what predictpool needs, and the peer. predictpool itself and these benchmarks are not
installed: a peer's processes take them from this repository through PYTHONPATH, so no environment
is ever older than the code.
"""

import argparse
import re
import subprocess
import tomllib
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks import report

Note = Callable[[str], None]

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / ".benchmarks"
_SHOWN_LINES = 4
_VERSIONS = "import sys; from importlib.metadata import version as v; print(*map(v, sys.argv[1:]))"

# The release lines that the servers in this folder are written for.
PEERS = {
    "bentoml": "bentoml~=1.4.40",
    "litserve": "litserve~=0.2.19",
    "mlserver": "mlserver~=1.7.1",
    "mosec": "mosec~=0.9.8",
    "pytriton": "nvidia-pytriton~=0.7.0",
    "ray": "ray[serve]~=2.60",
}
# What the client of each needs; one client for all, so that none pays for another's.
CLIENT = ("aiohttp>=3.10", "msgpack>=1", "orjson>=3", "psutil", "uvloop")

# MLServer and TensorFlow exclude each other's protobuf, and run with MLServer's all the same: so it
# comes in a second step, which says what must stay. Its workers do not start on a newer uvloop.
AFTERWARDS = {"mlserver": ("numpy<2", "protobuf<6", "uvloop<0.22")}


@dataclass(frozen=True)
class Environment:
    """Whether a peer is there.

    Attributes:
        name: as in `PEERS`.
        python: its interpreter; None where it is not installed.
        version: of the peer's package; "" where it is not installed.
        reason: why it is not installed; "" where it is.
    """

    name: str
    python: Path | None
    version: str = ""
    reason: str = ""


def find(name: str, directory: Path) -> Environment:
    """Look whether a peer's environment is there, complete and with the same TensorFlow."""
    python = directory.absolute() / name / "bin" / "python"
    if not python.exists():
        return Environment(name, None, reason=f"run `python -m benchmarks environments {name}`")
    asked = _run([str(python), "-c", _VERSIONS, _distribution(name), "tensorflow"])
    if asked.returncode:
        return Environment(name, None, reason=_last_lines(asked.stderr))
    version, tensorflow = asked.stdout.split()
    ours = metadata.version("tensorflow")
    if tensorflow != ours:
        return Environment(name, None, reason=f"has TensorFlow {tensorflow}, expected {ours}")
    return Environment(name, python, version)


def build(name: str, directory: Path) -> Environment:
    """Build a peer's environment, anew if it is there."""
    place = directory / name
    venv.create(place, clear=True, with_pip=True)
    python = str(place / "bin" / "python")
    for step in steps(name):
        installed = _run([python, "-m", "pip", "install", "--quiet", *step])
        if installed.returncode:
            return Environment(name, None, reason=_last_lines(installed.stderr))
    return find(name, directory)


def steps(name: str) -> list[list[str]]:
    """Return what is installed into a peer's environment, in one step or in two."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tensorflow = f"tensorflow=={metadata.version('tensorflow')}"
    first, then = [tensorflow, *project["dependencies"], *CLIENT], PEERS[name]
    return [first, [then, *AFTERWARDS[name]]] if name in AFTERWARDS else [[then, *first]]


def main(arguments: list[str], note: Note) -> None:
    """Build environments as the command line says, and print which there are."""
    from benchmarks import report  # which needs more than there is in a peer's environment

    parser = argparse.ArgumentParser(prog="python -m benchmarks environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PEERS)}: all")
    parser.add_argument("--environments", type=Path, default=DEFAULT, help="where to put them")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(PEERS))
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    found = []
    for name in options.names or PEERS:
        note(f"installing {PEERS[name]}")
        found.append(build(name, options.environments))
    show(report.Paper(markdown=False), found)


def show(paper: "report.Paper", found: Sequence[Environment]) -> None:
    """Print what is installed, and why the rest is not."""
    table = paper.table("Environments", "", "peer", "version", "not installed because")
    for environment in found:
        table.add_row(environment.name, environment.version, environment.reason)
    paper.print(table)


def python_path() -> str:
    """Return the PYTHONPATH of a peer's processes."""
    return f"{ROOT / 'src'}:{ROOT}"


def _distribution(name: str) -> str:
    return re.split(r"[\[~]", PEERS[name])[0]


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_lines(said: str) -> str:
    lines = [line for line in said.splitlines() if line and not line.startswith("WARNING")]
    return "\n".join(lines[-_SHOWN_LINES:])
