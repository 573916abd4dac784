"""Control groups of the tests' own, where the machine allows that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def control_group(controller: str, v1: dict[str, str], v2: dict[str, str]) -> Iterator[Path]:
    """Make a control group with limits, or skip the test where that is not allowed.

    Args:
        v1, v2: what its files get, in each version.

    Yields:
        the file to write the numbers of its processes to.
    """
    folder, limits = Path("/sys/fs/cgroup") / controller, v1
    if not folder.is_dir():
        folder, limits = Path("/sys/fs/cgroup"), v2
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = [path for _, controllers, path in groups if controller in controllers.split(",")]
    group = (folder / own[0].lstrip("/") if own else folder) / f"predictpool-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            for file, text in limits.items():
                (group / file).write_text(text)
        except OSError as error:
            pytest.skip(f"no limit can be set here: {error}")
        yield group / "cgroup.procs"
    finally:
        group.rmdir()
