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
from tests.pages import PAGES, ROOT, assert_printed, run_as_a_user, scripts_of

pytestmark = pytest.mark.timeout(300)  # a page of many recipes loads as many models

# It has a test of its own, `test_tutorial`.
TUTORIAL = ROOT / "docs" / "tutorial" / "index.md"
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
# What these alone need: the dependency groups `examples`, `hooks` and `server`, which CI installs.
NEEDED = {
    "from-tensorflow-serving": "orjson",
    "jax_model": "jax",
    "metrics": "prometheus_client",
    "onnx_model": "onnxruntime",
    "ray": "ray",
    "scikit_learn": "sklearn",
    "serve": "tritonclient",
    "torch_model": "torch",
}
# What pages import that is not installed everywhere.
OPTIONAL = ("fastapi",)


@pytest.fixture(scope="session")
def income(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that pages predict with: what ``docs/examples/income.py`` trains."""
    folder = tmp_path_factory.mktemp("income")
    run_as_a_user([sys.executable, ROOT / "docs" / "examples" / "income.py"], folder)
    return folder / "models"


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def has_code(page: Path) -> bool:
    return re.search(r"^ *(```+|~~~+)py", page.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize(
    "source",
    [*(page for page in PAGES if has_code(page) and page != TUTORIAL), *EXAMPLES],
    ids=lambda source: str(source.relative_to(ROOT)),
)
def test_shown_code_runs(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needed = NEEDED.get(source.stem)
    if needed is not None and not installed(needed):
        pytest.skip(f"{needed} is not installed")
    text = source.read_text()
    for name in OPTIONAL:
        if re.search(rf"^(?:from|import) {name}\b", text, re.MULTILINE) and not installed(name):
            pytest.skip(f"{name} is not installed")
    with_income = re.search("models/income|from income import", text) is not None
    if not needs.HAS_ESTIMATORS and (with_income or "import tensorflow" in text):
        pytest.skip("needs TensorFlow 2.12 to 2.15, the last that have Estimators")
    if with_income and ".train(" not in text:
        shutil.copytree(request.getfixturevalue("income"), tmp_path / "models")
    if "from income import" in text:
        shutil.copy(ROOT / "docs" / "examples" / "income.py", tmp_path)
    name = f"{source.stem}.py"
    scripts = scripts_of(text, name) if source.suffix == ".md" else {name: text}
    printed = []
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
        printed.append(run_as_a_user([sys.executable, name], tmp_path))
    assert_printed(text, "".join(printed))


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
    [script] = scripts_of(page, "page.py").values()
    lines = script.splitlines()
    assert {number: line for number, line in enumerate(lines, start=1) if line} == {
        3: "a = 1",
        7: "if a:",
        8: "    b = a",
        25: "print(a, b)",
    }


def test_a_block_that_is_not_run_says_why() -> None:
    with pytest.raises(AssertionError, match="no reason on line 1"):
        scripts_of("<!-- not run: -->\n```python\nnever = 1\n```\n", "page.py")


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
            f"{python} -m pytest -n 2 --dist loadfile -m not faults",
            f"{python} -m tests.table measure build/lanes/{name}.json",
        )
    ]
