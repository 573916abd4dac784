"""What some tests need that is not installed everywhere; where it is not, they are skipped."""

from __future__ import annotations

import importlib.metadata

import pytest


def version_of(distribution: str) -> tuple[int, ...] | None:
    """Return the first two numbers of an installed distribution's version, without importing it."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(map(int, version.split(".")[:2]))


TENSORFLOW = version_of("tensorflow")
HAS_ESTIMATORS = TENSORFLOW is not None and TENSORFLOW < (2, 16)

estimators = pytest.mark.skipif(
    not HAS_ESTIMATORS, reason="needs TensorFlow 2.12 to 2.15, the last that have Estimators"
)
tensorflow = pytest.mark.skipif(TENSORFLOW is None, reason="needs TensorFlow")
matplotlib = pytest.mark.skipif(version_of("matplotlib") is None, reason="needs matplotlib")
pyarrow = pytest.mark.skipif(version_of("pyarrow") is None, reason="needs pyarrow")
ray = pytest.mark.skipif(version_of("ray") is None, reason="needs Ray")
sphinx = pytest.mark.skipif(version_of("sphinx") is None, reason="needs Sphinx")
serve = pytest.mark.skipif(
    version_of("uvicorn") is None or version_of("aiohttp") is None,
    reason="needs what `predictpool serve` needs, and aiohttp",
)
no_estimators = pytest.mark.skipif(
    TENSORFLOW is None or HAS_ESTIMATORS, reason="needs TensorFlow 2.16 or newer"
)
