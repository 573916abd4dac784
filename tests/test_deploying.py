"""What ``docs/how-to/deploying.md`` shows is right: unit, image, manifest and their command."""

from __future__ import annotations

import configparser
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from predictpool import PredictorPool
from tests.pages import ROOT, ask, files_of, serving

PAGE = ROOT / "docs" / "how-to" / "deploying.md"
FILES = files_of(PAGE.read_text())

pytestmark = pytest.mark.timeout(60)


def joined(name: str) -> str:
    """Return a file without the breaks of its long lines."""
    return FILES[name].replace("\\\n", " ")


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    parsed.read_string(joined("income.service"))
    return parsed


def instructions() -> list[tuple[str, str]]:
    lines = joined("Dockerfile").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def command() -> list[str]:
    [found] = [rest for name, rest in instructions() if name == "CMD"]
    arguments: list[str] = json.loads(found)
    return arguments


def pod() -> Any:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return yaml.safe_load(FILES["income.yaml"])["spec"]["template"]["spec"]


def default_of(option: str) -> float:
    return float(inspect.signature(PredictorPool).parameters[option].default)


def seconds_to_stop() -> float:
    """How long the server and then the pool may take to end."""
    arguments = command()
    server = float(arguments[arguments.index("--timeout-graceful-shutdown") + 1])
    [grace] = re.findall(r"grace_period=(\d+)", FILES["service.py"])
    return server + float(grace)


def test_all_files_are_found() -> None:
    names = ["service.py", "income.service", "requirements.txt", "Dockerfile", "income.yaml"]
    assert list(FILES) == names


def test_unit_and_image_start_the_same() -> None:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"])
    assert [Path(program).name, *arguments] == command()
    assert Path(program).is_relative_to(unit()["Service"]["WorkingDirectory"])


def test_what_the_image_copies_is_on_the_page() -> None:
    copied = [rest.split()[0] for name, rest in instructions() if name == "COPY"]
    assert copied == ["requirements.txt", "service.py"]
    assert set(copied) <= set(FILES)
    module, _, name = command()[1].partition(":")
    assert re.search(rf"^{name} = ", FILES[f"{module}.py"], re.MULTILINE)
    requirements = FILES["requirements.txt"].split()
    imported = set(re.findall(r"^from (\w+)", FILES["service.py"], re.MULTILINE))
    assert imported - {"contextlib"} <= set(requirements)
    assert command()[0] in requirements


def test_all_speak_of_the_same_port() -> None:
    arguments = command()
    port = int(arguments[arguments.index("--port") + 1])
    assert ("EXPOSE", str(port)) in instructions()
    [container] = pod()["containers"]
    assert container["ports"] == [{"containerPort": port}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port


def test_nobody_is_killed_before_its_time() -> None:
    assert float(unit()["Service"]["TimeoutStopSec"]) > seconds_to_stop()
    [container] = pod()["containers"]
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod()["terminationGracePeriodSeconds"] > pause + seconds_to_stop()
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > default_of("start_timeout")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "income.service"
    text = FILES["income.service"].replace("/srv/income/.venv/bin/uvicorn", sys.executable)
    path.write_text(text)
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "income.service" not in run.stdout + run.stderr


@pytest.mark.usefixtures("nothing_left")
def test_the_command_serves_and_ends_at_sigterm(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs fastapi")
    [container] = pod()["containers"]
    (tmp_path / "service.py").write_text(FILES["service.py"])
    with serving(command(), tmp_path, seconds_to_stop()) as address:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            ready = ask(address + container[probe]["httpGet"]["path"])
            assert 1 <= ready["ready"] <= ready["workers"]
        found = ask(f"{address}/predict", {"age": [50, 20], "hours": [40, 0]})
        assert found["score"] == pytest.approx([21.0, 0.4])
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{address}/predict", {"age": [50]})
        with refused.value as answer:
            assert answer.code == 422
            assert "hours" in answer.read().decode()
