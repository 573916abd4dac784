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
        threads: how many threads TensorFlow gets.
    """

    kind: str = "cpu"
    cores: tuple[int, ...] = ()
    threads: int = 1


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may use.

    Never ``os.cpu_count()``, which is the machine's.
    """
    return tuple(sorted(os.sched_getaffinity(0)))


def worth(cores: tuple[int, ...], root: Path = Path("/")) -> int:
    """Return how many cores' worth of time this process may take: its cgroup's quota.

    Args:
        cores: those that it may use.
        root: where ``/proc`` and ``/sys`` are; for tests.
    """
    quota = _cgroup_quota(root)
    return len(cores) if quota is None else min(len(cores), max(1, math.ceil(quota)))


def plan(workers: int | None, cores: tuple[int, ...], count: int) -> list[Device]:
    """Return a device for each worker; without a number, one for each core's worth.

    Each is pinned to one core, in turn: a small model's calls hop between two threads, 1.6
    times faster on one core than across two, and a pool uses more cores by having more
    workers. Where a quota allows less than all cores nobody is pinned: every container of
    the host would choose the same ones.

    Args:
        workers: how many, or None.
        cores: the cores that may be used.
        count: how many cores' worth of time may be taken, from `worth`.
    """
    slots = range(count if workers is None else workers)
    if count < len(cores):
        return [Device(cores=cores) for _ in slots]
    return [Device(cores=(cores[slot % len(cores)],)) for slot in slots]


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
