"""The tutorial works as told: its files, its commands, and what it serves in the end."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.pages import (
    ROOT,
    ask,
    assert_printed,
    environment,
    marked,
    run_as_a_user,
    scripts_of,
)

PAGE = (ROOT / "docs" / "tutorial" / "index.md").read_text()
SCRIPTS = scripts_of(PAGE, "before_the_first_name")

pytestmark = needs.estimators


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has saved all files, and trained the model."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    run_as_a_user([sys.executable, "income.py"], folder)
    return folder


def test_its_files_run_and_print_what_it_says(folder: Path) -> None:
    trains, *others = SCRIPTS
    assert (trains, others) == ("income.py", ["ask.py", "many.py", "wrong.py"])
    [check] = marked(PAGE, "run")
    commands = [shlex.split(check), *([sys.executable, name] for name in others)]
    printed = "".join(run_as_a_user(command, folder) for command in commands)
    assert_printed(PAGE, printed)
    right, said = (re.findall(r"(\d+)% of the answers", text) for text in (printed, PAGE))
    assert [abs(int(a) - int(b)) <= 1 for a, b in zip(right, said, strict=True)] == [True]


def test_it_is_served(folder: Path) -> None:
    pytest.importorskip("httptools", reason="needs the extra serve")
    [serves], [says], [asks], [answers] = (
        marked(PAGE, mark) for mark in ("serves", "says", "asks", "answers")
    )
    curl, option, body, shown = shlex.split(asks)
    assert (curl, option) == ("curl", "-d")
    with subprocess.Popen(
        [*shlex.split(serves), "--port", "0"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline().rstrip()
        [address] = re.findall(r"http://[\d.:]+", line)
        try:
            [theirs] = re.findall(r"http://[\d.:]+", says)
            assert line == says.replace(theirs, address)
            [given] = ask(shown.replace(theirs, address), json.loads(body))["predictions"]
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
    [expected] = json.loads(answers)["predictions"]
    assert list(given) == list(expected)
    for name, values in expected.items():
        close = pytest.approx(values, abs=0.05) if isinstance(values[0], float) else values
        assert given[name] == close
