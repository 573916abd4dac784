"""What this machine lets us use, and where each worker goes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """Where a worker is pinned.

    Attributes:
        kind: ``"cpu"``.
        cores: the numbers of the CPU cores that the worker may use.
    """

    kind: str = "cpu"
    cores: tuple[int, ...] = ()


def available_cores(root: Path = Path("/")) -> tuple[int, ...]:
    """Return the cores that this process may use: its affinity, cut to its cgroup's quota.

    Never ``os.cpu_count()``, which is the machine's and makes a container start a worker
    for each core of its host.

    Args:
        root: where ``/proc`` and ``/sys`` are; for tests.
    """
    cores = sorted(os.sched_getaffinity(0))
    quota = _cgroup_quota(root)
    return tuple(cores if quota is None else cores[: max(1, math.ceil(quota))])


def plan(workers: int | None, cores: tuple[int, ...]) -> list[Device]:
    """Return a device for each worker.

    Without a number there is one worker for each core. Each is pinned to one core, in
    turn: a small model's calls hop between two threads, 1.6 times faster on one core than
    across two, and a pool uses more cores by having more workers.
    """
    count = len(cores) if workers is None else workers
    return [Device(cores=(cores[slot % len(cores)],)) for slot in range(count)]


def _cgroup_quota(root: Path) -> float | None:
    """Return the smallest CPU quota on the way up this process's cgroup, in cores."""
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            quotas += _quotas(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct"):
                quotas += _quotas(root / "sys/fs/cgroup" / mount, path, _quota_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    group = Path(path.lstrip("/"))
    found = (read(mount / parent) for parent in (group, *group.parents))
    return [quota for quota in found if quota is not None]


def _quota_v2(group: Path) -> float | None:
    fields = _read(group / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if not quota.strip() or not period.strip() or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such controller here
        return ""
