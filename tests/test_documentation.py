"""What the documentation shows works as shown, for a user who saves it to a file and runs it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
# What these alone need: the dependency groups `examples`, `hooks` and `server`, which CI installs.
NEEDED = {
    "from-tensorflow-serving": "orjson",
    "jax_model": "jax",
    "metrics": "prometheus_client",
    "onnx_model": "onnxruntime",
    "scikit_learn": "sklearn",
    "serve": "tritonclient",
    "torch_model": "torch",
}

FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w{}-]*).*")
NOT_RUN = re.compile(r" *<!-- not run:(?P<reason>.*)-->")


def script_of(page: str) -> str:
    """Return a page's Python blocks, each on the lines it has in the page, as one script.

    So the line numbers of a traceback are those of the page.
    """
    script: list[str] = []
    opening: re.Match[str] | None = None
    runs = False
    before = ""  # the last line above the block that is not blank
    for line in page.splitlines():
        kept = ""
        if opening is None:
            opening = FENCE.fullmatch(line)
            if opening is not None:
                runs = opening["language"] in {"python", "py"}
                if skipped := NOT_RUN.fullmatch(before):
                    assert skipped["reason"].strip(), f"no reason on line {len(script)}: {before}"
                    runs = False
        elif line.strip().startswith(opening["fence"]) and not line.strip(" `~"):
            opening = None
        elif runs:
            kept = line.removeprefix(opening["indent"])
        script.append(kept)
        before = line if line.strip() else before
    return "\n".join(script)


@pytest.fixture(scope="session")
def income(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that pages predict with: what ``docs/examples/income.py`` trains."""
    folder = tmp_path_factory.mktemp("income")
    run_as_a_user(ROOT / "docs" / "examples" / "income.py", folder)
    return folder / "models"


def run_as_a_user(script: Path, folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,  # before pytest's own limit, which would not show the output
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


def has_code(page: Path) -> bool:
    return re.search(r"^ *(```+|~~~+)py", page.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize(
    "source",
    [*filter(has_code, PAGES), *EXAMPLES],
    ids=lambda source: str(source.relative_to(ROOT)),
)
def test_shown_code_runs(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needed = NEEDED.get(source.stem)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    text = source.read_text()
    with_income = re.search("models/income|from income import", text) is not None
    if not needs.HAS_ESTIMATORS and (with_income or "import tensorflow" in text):
        pytest.skip("needs TensorFlow 2.12 to 2.15, the last that have Estimators")
    if with_income and ".train(" not in text:
        shutil.copytree(request.getfixturevalue("income"), tmp_path / "models")
    if "from income import" in text:
        shutil.copy(ROOT / "docs" / "examples" / "income.py", tmp_path)
    script = tmp_path / f"{source.stem}.py"
    script.write_text(script_of(text) if source.suffix == ".md" else text)
    run_as_a_user(script, tmp_path)


def test_blocks_keep_their_lines_and_their_order() -> None:
    page = """\
Text.
```python
a = 1
```
- a list:
  ```python
  if a:
      b = a
  ```

<!-- not run: needs a GPU -->

```python
never = 1
```
```{code-block} python
never = 2
```
````markdown
```python
never = 3
```
````
```py
print(a, b)
```
"""
    lines = script_of(page).splitlines()
    assert {number: line for number, line in enumerate(lines, start=1) if line} == {
        3: "a = 1",
        7: "if a:",
        8: "    b = a",
        25: "print(a, b)",
    }


def test_a_block_that_is_not_run_says_why() -> None:
    with pytest.raises(AssertionError, match="no reason on line 1"):
        script_of("<!-- not run: -->\n```python\nnever = 1\n```\n")


# Makes an environment whose Python says how it is called.
NEWER_PYTHON = """#!/bin/sh
[ "$1" = --version ] && exit
mkdir -p "$4/bin"
printf '#!/bin/sh\\necho "$0 $*"\\n' > "$4/bin/python"
chmod +x "$4/bin/python"
"""


def test_ci_runs_the_command_of_the_readme_and_then_the_other_lanes(tmp_path: Path) -> None:
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    checks = ("ruff", "mypy", "pyright", "lint-imports", "sphinx-build")
    for tool in ("python", "python3.11", *checks):
        (tools / tool).write_text("#!/bin/sh\n")
    (tools / "python3.13").write_text(NEWER_PYTHON)
    for made in tools.iterdir():
        made.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text(
        "# Other\n```console\necho no\n```\n"
        "<!-- test-command -->\n```console\necho make && echo install && echo $PWD\n```\n"
    )
    run = subprocess.run(
        ["bash", script],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    output = [line for line in run.stdout.splitlines() if not line.startswith("+")]
    assert output[:3] == ["make", "install", str(tmp_path)]
    lanes = {
        "tensorflow": "-e .[tensorflow,cli] tensorflow>=2.21 keras>=3",
        "plain": "-e .[cli] --group examples",
    }
    assert output[3:] == [
        line
        for name, packages in lanes.items()
        for python in [f"build/lanes/{name}/bin/python"]
        for line in (
            f"{python} -m pip install --quiet --upgrade pip",
            f"{python} -m pip install --quiet {packages} --group test",
            f"{python} -m pytest -m not faults",
            f"{python} -m tests.table measure build/lanes/{name}.json",
        )
    ]
