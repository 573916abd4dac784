"""What this machine lets us use, and where each worker goes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from predictpool._cgroup import cpu_quota


@dataclass(frozen=True)
class Device:
    """Where a worker is pinned.

    Attributes:
        kind: ``"cpu"``.
        cores: the numbers of the CPU cores that the worker may use; none for a worker of
            `predictpool.testing.InlinePool`, which may use what its tests may.
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
    quota = cpu_quota(root)
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
