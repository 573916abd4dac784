"""What is in the pages of the documentation, for the tests that hold them to the truth."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w{}-]*).*")
NOT_RUN = re.compile(r" *<!-- not run:(?P<reason>.*)-->")
FILE_NAME = re.compile(r"# ([\w.]+\.\w+|Dockerfile)")
CONSOLE = re.compile(r"^ *```(?:console|bash|sh)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[ /])predictpool +(\w[^&|;<>#\n]*)")
IN_TEXT = re.compile(r"`predictpool ([a-z][^`\n]*)`")
PRINTS = r"^<!-- prints(, with other numbers)? -->\n```text\n(.*?)\n```$"
ROW = re.compile(r"^\| `(\w+)`(?:, `\w+`)* \|(.*)\|$", re.MULTILINE)


# --- what a page shows -------------------------------------------------------------


def scripts_of(page: str, name: str) -> dict[str, str]:
    """Return a page's Python blocks as scripts: file name → text.

    Each block is on the lines that it has in the page, so the line numbers of a traceback are
    those of the page. A block whose first line is the name of a file, as a comment, begins that
    file; what is before the first of them is called ``name``.
    """
    scripts: dict[str, dict[int, str]] = {}
    opening: re.Match[str] | None = None
    runs = begins = False
    before = ""  # the last line above the block that is not blank
    for number, line in enumerate(page.splitlines()):
        if opening is None:
            opening = FENCE.fullmatch(line)
            if opening is not None:
                runs = begins = opening["language"] in {"python", "py"}
                if skipped := NOT_RUN.fullmatch(before):
                    assert skipped["reason"].strip(), f"no reason on line {number}: {before}"
                    runs = False
        elif line.strip().startswith(opening["fence"]) and not line.strip(" `~"):
            opening = None
        elif runs:
            if begins and (found := FILE_NAME.fullmatch(line)):
                name = found[1]
            begins = False
            scripts.setdefault(name, {})[number] = line.removeprefix(opening["indent"])
        before = line if line.strip() else before
    return {
        name: "\n".join(lines.get(number, "") for number in range(max(lines) + 1)) + "\n"
        for name, lines in scripts.items()
    }


def files_of(page: str) -> dict[str, str]:
    """Return the blocks of any language that begin with the name of a file: name → text."""
    found = re.findall(rf"^```\w+\n{FILE_NAME.pattern}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return dict(found)


def marked(page: str, mark: str) -> list[str]:
    """Return the blocks below a comment, ``<!-- mark -->``, without their last newline."""
    return re.findall(rf"^<!-- {mark} -->\n```\w+\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def commands_of(page: str) -> list[str]:
    """Return what a page's shell blocks, and its text, call ``predictpool`` with."""
    found = IN_TEXT.findall(page)
    for block in CONSOLE.findall(page):
        lines = block.replace("\\\n", " ").splitlines()
        # Where there are prompts the other lines are output.
        prompted = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        for line in prompted or lines:
            found += COMMAND.findall(line)
    return found


def sections_of(page: str) -> dict[str, str]:
    """Return the text below each heading of the second level: heading → text."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows_of(section: str) -> dict[str, list[str]]:
    """Return the lines of a section's tables that begin with a name in code: name → cells."""
    return {
        name: [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)]
        for name, rest in ROW.findall(section)
    }


# --- as a user would run it --------------------------------------------------------


def run_as_a_user(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder. Returns what it printed."""
    run = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,  # before pytest's own limit, which would not show the output
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


def assert_printed(page: str, printed: str) -> None:
    """Find each block that is marked with ``prints``, in order; "…" stands for anything.

    Where the mark says ``prints, with other numbers``, any number will do for each, such as for
    seconds and process ids, and any list of numbers, for cores.
    """
    printed = re.sub(r" +$", "", printed, flags=re.MULTILINE)  # rich fills lines up
    blocks = re.findall(PRINTS, page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == page.count("\n<!-- prints"), "a mark is not above a block of text"
    start = 0
    for mark, text in blocks:
        expected = re.escape(text).replace("…", ".*?")
        if mark:
            expected = re.sub(r"\d+", r"\\d+(?:, \\d+)*", expected)
        found = re.compile(expected, re.DOTALL).search(printed, start)
        assert found, f"{text}\nis not in what was printed:\n{printed[start:]}"
        start = found.end()


@contextmanager
def serving(command: Sequence[str], folder: Path, seconds_to_stop: float = 20) -> Iterator[str]:
    """Run a page's uvicorn in a folder, on a free port, until SIGTERM. Yields its address."""
    arguments = [sys.executable, "-m", *command]
    for option, value in (("--port", "0"), ("--host", "127.0.0.1")):
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
    with subprocess.Popen(
        arguments, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _address(process)
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=seconds_to_stop)[1]
            assert "Application shutdown complete" in rest
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    log = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"running on (http://[\d.:]+)", line):
            return found[1]
    raise AssertionError("".join(log))


def ask(address: str, body: Any = None) -> Any:
    """Send JSON, or nothing, to an address. Returns the JSON that comes back."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def environment() -> dict[str, str]:
    """Have the commands of this Python's environment found by their names."""
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
