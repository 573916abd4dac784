"""The tutorial works as told: its files, its commands, and what it serves in the end."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.pages import ROOT, ask, assert_printed, marked, run_as_a_user, scripts_of, serving

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
    others = [name for name in SCRIPTS if name not in {"income.py", "service.py"}]
    assert others == ["ask.py", "many.py", "wrong.py"]
    [check] = marked(PAGE, "run")
    commands = [shlex.split(check), *([sys.executable, name] for name in others)]
    printed = "".join(run_as_a_user(command, folder) for command in commands)
    assert_printed(PAGE, printed)
    right, said = (re.findall(r"(\d+)% of the answers", text) for text in (printed, PAGE))
    assert [abs(int(a) - int(b)) <= 1 for a, b in zip(right, said, strict=True)] == [True]


def test_it_is_served(folder: Path) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi")
    [serves], [asks], [answer] = (marked(PAGE, mark) for mark in ("serves", "asks", "answers"))
    curl, option, body, address = shlex.split(asks)
    assert (curl, option) == ("curl", "--json")
    host, _, path = address.partition("/")
    assert host == f"localhost:{serves.rpartition(' ')[2]}"
    with serving(shlex.split(serves), folder) as served:
        assert ask(f"{served}/{path}", json.loads(body)) == json.loads(answer)
