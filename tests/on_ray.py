"""A plugin of pytest: the tests of the pool, with workers that are Ray actors.

``RAY_TMPDIR=… python -m pytest -p tests.on_ray`` and the files that `SHARED` names;
`tests.test_ray` does so, in a process of its own, because Ray starts threads and processes in
whatever imports it. The tests are the same that local workers have to pass, those of them that
speak of what a `RayLauncher` has to do: requests and answers, errors, deadlines, deaths, reloads,
resizes, ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from predictpool import PredictorPool, RayLauncher
from predictpool._launcher import Launcher

SHARED: dict[str, list[str]] = {
    "test_pool.py": [
        "test_closing_lets_requests_finish_and_refuses_new_ones",
        "test_closing_lets_the_predictor_close",
        "test_predict_takes_mappings_and_arrays_and_keeps_dtypes_and_shapes",
        "test_hundreds_of_callers_each_get_their_own_rows",
    ],
    "test_requests.py": [
        "test_requests_that_wait_share_a_batch_of_up_to_max_batch_size_rows",
        "test_a_poisoned_row_fails_alone_and_its_mates_are_answered",
        "test_a_deadline_passes_while_the_request_runs_and_the_worker_lives_on",
        "test_cancelling_returns_at_once_waiting_and_running",
        "test_one_request_more_than_max_waiting_is_refused_at_once",
        "test_bad_features_never_reach_a_worker_and_are_counted",
        "test_a_builtin_exception_comes_back_as_itself_with_the_workers_traceback",
        "test_an_exception_of_a_module_that_is_not_imported_here_does_not_import_it",
        "test_outputs_that_cannot_travel_fail_one_request_and_harm_nobody",
    ],
    "test_options.py": [
        "test_hang_timeout_limits_a_batch",
    ],
    "test_start.py": [
        "test_a_predictor_that_does_not_unpickle_is_a_start_error_with_the_traceback",
        "test_a_warm_up_that_fails_is_a_start_error_that_names_warmup",
    ],
    "test_faults.py": [
        "test_a_request_whose_worker_dies_once_is_answered_by_the_next",
        "test_an_idle_worker_that_is_killed_is_replaced_and_nobody_notices",
    ],
    "test_reload.py": [
        "test_what_runs_in_the_old_worker_is_answered_by_it_and_what_waits_by_the_new",
    ],
    "test_resize.py": ["test_a_larger_pool_has_more_workers_and_keeps_those_it_has"],
    "test_workers.py": ["test_a_worker_is_told_of_only_while_it_is_ready"],
    "test_hooks.py": ["test_every_outcome_is_told_once"],
}
ALSO_ON_UVLOOP = ("test_an_idle_worker_that_is_killed_is_replaced_and_nobody_notices",)
# Of a test of several ways to die: what the others show is the same here.
LEFT_OUT = ("SIGSEGV", "exit 1", "a signal without a name", "6", "11", "39")
# What watches the process as a whole: Ray opens what it needs there whenever it likes.
RAYS_OWN = ("nothing_left", "never_blocking")


class RayPool(PredictorPool[Any]):
    """A pool whose workers are actors, unless a test says where they are."""

    def _launcher_for(self, given: Launcher | None) -> Launcher:
        return RayLauncher(num_cpus=0) if given is None else given


def files() -> list[str]:
    """Return what pytest has to be told."""
    return [str(Path(__file__).with_name(name)) for name in SHARED]


def actors() -> list[int]:
    """Return the process ids of our actors: they inherit what tells Ray where to put its files."""
    ours = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # of another user, or ended meanwhile
                named = (folder / "cmdline").read_bytes().startswith(b"ray::Host")
                if named and ours in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def gone_within(seconds: float) -> bool:
    """Whether all actors end in time; theirs is no event for us."""
    deadline = time.monotonic() + seconds
    while actors():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what is shared, on asyncio."""
    chosen = [item for item in items if _is_wanted(item)]
    found = {_name(item) for item in chosen}
    here = {item.path.name for item in items}
    missing = [name for file in here for name in SHARED.get(file, []) if name not in found]
    assert not missing, f"not there any more: {missing}"
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    for item in chosen:
        names: list[str] = item.fixturenames  # type: ignore[attr-defined]
        names[:] = [name for name in names if name not in RAYS_OWN]
    items[:] = chosen


def _name(item: pytest.Item) -> str:
    return item.name.partition("[")[0]


def _is_wanted(item: pytest.Item) -> bool:
    name = _name(item)
    if name not in SHARED.get(item.path.name, ()):
        return item.path.name not in SHARED
    given = item.name.partition("[")[2].rstrip("]").split("-")
    on_loop = "uvloop" not in given or name in ALSO_ON_UVLOOP
    return on_loop and not {"trio", "inline", *LEFT_OUT} & {*given}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests, with four CPUs that it need not have."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def on_ray(
    cluster: None,  # noqa: ARG001
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Have a test make pools of actors, and see them gone when it ends."""
    if hasattr(request.module, "PredictorPool"):
        monkeypatch.setattr(request.module, "PredictorPool", RayPool)
    yield
    assert gone_within(10), f"actors were left behind: {actors()}"
