"""A pool takes the cores that it is given, not those that the machine has."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictpool._devices import (
    Device,
    Machine,
    available_cores,
    parse_devices,
    plan,
    worth,
)

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


def planned(
    devices: str | list[str],
    workers: int | None = None,
    *,
    cores: tuple[int, ...] = (0, 1, 2, 3),
    count: int | None = None,
    gpus: tuple[str, ...] = (),
) -> list[Device]:
    machine = Machine(cores, len(cores) if count is None else count, gpus)
    return plan(parse_devices(devices, workers), workers, machine)


def test_there_is_one_worker_for_each_core() -> None:
    assert planned("cpu", cores=(2, 3, 5)) == [
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
    assert [device.cores for device in planned("cpu", workers)] == expected


@on_busy_machines
@given(st.integers(1, 40), st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True))
def test_every_worker_has_one_core_and_they_are_used_evenly(workers: int, cores: list[int]) -> None:
    devices = planned("cpu", workers, cores=tuple(cores))
    assert len(devices) == workers
    assert all(len(device.cores) == 1 for device in devices)
    uses = [sum(core in device.cores for device in devices) for core in cores]
    assert max(uses) - min(uses) <= 1


@pytest.mark.parametrize(("workers", "expected"), [(None, 2), (1, 1), (5, 5)])
def test_under_a_quota_nobody_is_pinned(workers: int | None, expected: int) -> None:
    # Two containers of one host would choose the same cores and leave the others idle.
    devices = planned("cpu", workers, count=2)
    assert devices == [Device("cpu", (0, 1, 2, 3), threads=1)] * expected


def test_named_cores_are_those_of_one_worker_with_as_many_threads() -> None:
    assert planned("cpu:0-2") == [Device("cpu", (0, 1, 2), 3)]
    assert planned("cpu:3,0-1", 2) == [Device("cpu", (0, 1, 3), 3)] * 2
    assert planned(["cpu:0-1", "cpu:2-3"]) == [Device("cpu", (0, 1), 2), Device("cpu", (2, 3), 2)]


def test_workers_without_named_cores_take_those_that_the_others_leave() -> None:
    devices = planned(["cpu", "cpu:0-1", "cpu", "cpu"])
    assert [device.cores for device in devices] == [(2,), (0, 1), (3,), (2,)]
    shared = planned(["cpu", "cpu:0-3", "cpu"])  # which leaves none
    assert [device.cores for device in shared] == [(0,), (0, 1, 2, 3), (1,)]


def test_a_quota_leaves_named_cores_fewer_threads() -> None:
    assert planned("cpu:0-3", count=2) == [Device("cpu", (0, 1, 2, 3), 2)]


TWO_GPUS = ("GPU-a", "GPU-b")


@pytest.mark.parametrize(
    ("workers", "expected"), [(None, TWO_GPUS), (1, ("GPU-a",)), (3, ("GPU-a", "GPU-b", "GPU-a"))]
)
def test_auto_is_the_gpus_in_turn(workers: int | None, expected: tuple[str, ...]) -> None:
    devices = planned("auto", workers, gpus=TWO_GPUS)
    assert [device.gpu for device in devices] == list(expected)
    assert {device.kind for device in devices} == {"gpu"}


def test_auto_without_a_gpu_is_the_cpu() -> None:
    assert planned("auto") == planned("cpu") != []
    assert planned("auto", 7, count=2) == planned("cpu", 7, count=2)


def test_cpu_workers_see_no_gpu() -> None:
    devices = planned(["cpu", "cpu:1"], gpus=TWO_GPUS)
    assert [(device.kind, device.gpu) for device in devices] == [("cpu", ""), ("cpu", "")]


@pytest.mark.parametrize("written", ["gpu:1", "gpu:GPU-b"])
def test_a_gpu_is_named_by_its_number_or_its_uuid(written: str) -> None:
    (device,) = planned(written, gpus=TWO_GPUS)
    assert (device.kind, device.gpu) == ("gpu", "GPU-b")


def test_a_part_of_a_gpu_is_named_by_its_uuid() -> None:
    (device,) = planned("gpu:MIG-1/2/0", gpus=("MIG-x", "MIG-1/2/0"))
    assert device.gpu == "MIG-1/2/0"


def test_workers_of_one_gpu_share_its_part_of_the_cores() -> None:
    devices = planned("gpu:1", 2, gpus=TWO_GPUS)
    assert devices == [Device("gpu", (2, 3), 2, "GPU-b")] * 2
    assert planned("gpu:0", gpus=TWO_GPUS) == [Device("gpu", (0, 1), 2, "GPU-a")]
    assert planned("gpu:0", gpus=("GPU-a",)) == [Device("gpu", (0, 1, 2, 3), 4, "GPU-a")]


def test_gpu_workers_get_what_cpu_workers_leave_of_the_cores() -> None:
    devices = planned(["cpu:0-1", "gpu:0", "cpu", "gpu:1"], gpus=TWO_GPUS)
    assert [device.cores for device in devices] == [(0, 1), (3,), (2,), (3,)]
    one, other = planned(["cpu:0-3", "gpu:0"], gpus=("GPU-a",))  # which leaves none
    assert one.cores == other.cores == (0, 1, 2, 3)


def test_a_uuid_is_not_found_among_numbers_of_cudas_own_order() -> None:
    with pytest.raises(ValueError, match=r"gpu:0 is 1; .* set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        plan(parse_devices("gpu:GPU-b", None), None, Machine((0, 1), 2, ("1",)))


def test_under_a_quota_gpus_share_its_threads() -> None:
    devices = planned("auto", count=2, gpus=("GPU-a",))
    assert devices == [Device("gpu", (0, 1, 2, 3), 2, "GPU-a")]
    three = planned("auto", count=2, gpus=("GPU-a", "GPU-b", "GPU-c"))
    assert [device.threads for device in three] == [1, 1, 1]


@on_busy_machines
@given(
    st.lists(st.sampled_from(["cpu", "cpu:1", "cpu:0-2", "gpu:0", "gpu:GPU-b"]), min_size=1),
    st.integers(1, 9),
    st.integers(3, 9),
)
def test_every_plan_stays_within_the_machine(devices: list[str], count: int, cores: int) -> None:
    count = min(count, cores)
    planned_ones = planned(devices, cores=tuple(range(cores)), count=count, gpus=TWO_GPUS)
    for written, device in zip(devices, planned_ones, strict=True):
        assert device.kind == written[:3]
        assert device.cores
        assert set(device.cores) <= set(range(cores))
        assert 1 <= device.threads <= min(len(device.cores), count)
        assert device.gpu in (TWO_GPUS if device.kind == "gpu" else [""])
    # A pool that shrinks and grows again puts its workers where they were.
    wishes = parse_devices(devices, None)
    machine = Machine(tuple(range(cores)), count, TWO_GPUS)
    for fewer in range(1, len(devices)):
        assert plan(wishes, fewer, machine) == planned_ones[:fewer]


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (Device(cores=(0,)), "cpu:0 (1 thread)"),
        (Device(cores=(0, 1, 2, 5), threads=4), "cpu:0-2,5 (4 threads)"),
        (Device("gpu", (4, 5), 2, "GPU-a"), "gpu:GPU-a (cores 4-5; 2 threads)"),
        (Device("gpu", threads=2), "gpu (2 threads)"),
    ],
)
def test_a_device_says_what_it_is(device: Device, text: str) -> None:
    assert str(device) == text


# --- what cannot be ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "CPU", "cpu:", "cpu:a", "cpu:3-1", "cpu:0-", "cpu:-1", "cpu:0,,1", "cpu:123456"),
        *("gpu", "gpu:", "gpu:-1", "gpu:x", "gpu:0,1", "gpu:GPU-", "cuda:0", "auto:1", " cpu"),
    ],
)
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"devices has {text!r}, expected"):
        parse_devices(text, None)


@pytest.mark.parametrize("devices", [None, 0, ["cpu", 0], {"cpu"}, b"cpu"])
def test_devices_of_another_type_are_a_type_error(devices: object) -> None:
    with pytest.raises(TypeError, match=r"devices is .* expected .* or a list"):
        parse_devices(devices, None)


@pytest.mark.parametrize(
    ("devices", "workers", "message"),
    [
        ([], None, "devices is an empty list"),
        (["cpu", "auto"], None, '"auto" is for the whole pool'),
        (["cpu", "cpu"], 3, "devices lists 2, one for each worker, and workers is 3"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    devices: list[str], workers: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_devices(devices, workers)


@pytest.mark.parametrize(
    ("devices", "gpus", "message"),
    [
        ("cpu:3-4", (), r"'cpu:3-4', but this process may use the cores 0-3 alone"),
        ("gpu:0", (), "'gpu:0', but this process may use no GPU; CUDA_VISIBLE_DEVICES"),
        ("gpu:2", TWO_GPUS, "these alone: gpu:0 is GPU-a, gpu:1 is GPU-b"),
        ("gpu:GPU-c", TWO_GPUS, "'gpu:GPU-c', but this process may use these alone"),
        (["cpu", "gpu:MIG-a"], TWO_GPUS, "'gpu:MIG-a', but"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(
    devices: str | list[str], gpus: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(devices, gpus=gpus)


def test_a_list_has_no_device_for_a_further_worker() -> None:
    wishes = parse_devices(["cpu", "cpu"], None)
    with pytest.raises(ValueError, match=r"devices lists 2, .* there is none for 3 workers"):
        plan(wishes, 3, Machine((0, 1), 2))
