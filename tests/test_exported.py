"""SavedModels that Estimators were exported as say what the Estimators said, on any TensorFlow.

Where there are no Estimators, they are those that another environment has left in the folder
``PREDICTPOOL_EXPORTED``: `.ci/run` does so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import exported, needs

pytestmark = [needs.tensorflow, pytest.mark.timeout(1200)]  # whichever comes first trains all

FOLDER = os.environ.get("PREDICTPOOL_EXPORTED")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """What became of each SavedModel that the selected tests need."""
    wanted = {
        item.callspec.params.get("name")
        for item in request.session.items
        if hasattr(item, "callspec")
    }
    names = [name for name in exported.NAMES if name in wanted]
    folder = Path(FOLDER or tmp_path_factory.mktemp("exported"))
    if needs.HAS_ESTIMATORS:
        run("write", folder, names)
    elif FOLDER is None:
        pytest.skip("needs PREDICTPOOL_EXPORTED, a folder with SavedModels of Estimators")
    return json.loads(run("answer", folder, names))


def run(command: str, folder: Path, names: list[str]) -> str:
    arguments = [sys.executable, "-m", "tests.exported", command, str(folder), *names]
    return subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize("name", exported.NAMES)
def test_answers_equal_estimator_predict(outcomes: dict[str, Any], name: str) -> None:
    assert "error" not in outcomes[name], outcomes[name]["error"]
    assert outcomes[name]["max_difference"] <= 1e-6
