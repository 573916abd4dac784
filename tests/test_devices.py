"""A pool takes the cores that it is given, not those that the machine has."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictpool._devices import Device, available_cores, plan, worth

# How long an example takes is no promise.
on_busy_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CORES = {7, 2, 3, 5, 11, 13}


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: CORES)


def worth_under(root: Path, files: dict[str, str]) -> int:
    """Return what the cores are worth on a machine whose ``/proc`` and ``/sys`` have these."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return worth(available_cores(), root)


def test_without_cgroups_the_affinity_decides(tmp_path: Path) -> None:
    assert available_cores() == (2, 3, 5, 7, 11, 13)
    assert worth_under(tmp_path, {}) == 6


@pytest.mark.parametrize(
    ("cpu_max", "count"),
    [
        ("max 100000", 6),
        ("200000 100000", 2),
        ("150000 100000", 2),  # half a core is worth a worker
        ("1000 100000", 1),
        ("9900000 100000", 6),
        ("50000 25000", 2),
        ("", 6),
    ],
)
def test_the_quota_of_a_cgroup_v2_cuts_it(tmp_path: Path, cpu_max: str, count: int) -> None:
    files = {"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": f"{cpu_max}\n"}
    assert worth_under(tmp_path, files) == count


@pytest.mark.parametrize(
    ("inner", "outer", "root", "count"),
    [("max", "300000", None, 3), ("200000", "300000", None, 2), ("400000", "max", "100000", 1)],
)
def test_the_smallest_quota_on_the_way_up_decides(
    tmp_path: Path, inner: str, outer: str, root: str | None, count: int
) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/app\n",
        "sys/fs/cgroup/pod/app/cpu.max": f"{inner} 100000\n",
        "sys/fs/cgroup/pod/cpu.max": f"{outer} 100000\n",
        "sys/fs/cgroup/pod/other/cpu.max": "100000 100000\n",
    }
    if root is not None:
        files["sys/fs/cgroup/cpu.max"] = f"{root} 100000\n"
    assert worth_under(tmp_path, files) == count


def test_the_quota_of_a_cgroup_namespace_is_at_its_root(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}
    assert worth_under(tmp_path, files) == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("group", ["docker/abc", "docker", "."])
def test_the_quota_of_a_cgroup_v1_cuts_it(tmp_path: Path, mount: str, group: str) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
        f"sys/fs/cgroup/{mount}/{group}/cpu.cfs_quota_us": "250000\n",
        f"sys/fs/cgroup/{mount}/{group}/cpu.cfs_period_us": "100000\n",
    }
    assert worth_under(tmp_path, files) == 3


def test_a_cgroup_v1_without_a_quota_cuts_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/\n3:cpuset:/other\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/other/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/other/cpu.cfs_period_us": "100000\n",
    }
    assert worth_under(tmp_path, files) == 6


# --- the plan ----------------------------------------------------------------------


def test_there_is_one_worker_for_each_core() -> None:
    assert plan(None, (2, 3, 5), 3) == [
        Device("cpu", (2,)),
        Device("cpu", (3,)),
        Device("cpu", (5,)),
    ]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (1, [(0,)]),
        (3, [(0,), (1,), (2,)]),
        (4, [(0,), (1,), (2,), (3,)]),
        (6, [(0,), (1,), (2,), (3,), (0,), (1,)]),
    ],
)
def test_cores_are_divided_among_workers(workers: int, expected: list[tuple[int, ...]]) -> None:
    assert [device.cores for device in plan(workers, (0, 1, 2, 3), 4)] == expected


@on_busy_machines
@given(st.integers(1, 40), st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True))
def test_every_worker_has_one_core_and_they_are_used_evenly(workers: int, cores: list[int]) -> None:
    devices = plan(workers, tuple(cores), len(cores))
    assert len(devices) == workers
    assert all(len(device.cores) == 1 for device in devices)
    uses = [sum(core in device.cores for device in devices) for core in cores]
    assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(("workers", "expected"), [(None, 2), (1, 1), (5, 5)])
def test_under_a_quota_nobody_is_pinned(workers: int | None, expected: int) -> None:
    # Two containers of one host would choose the same cores and leave the others idle.
    assert plan(workers, (0, 1, 2, 3), 2) == [Device("cpu", (0, 1, 2, 3), threads=1)] * expected
