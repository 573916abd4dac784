"""What this process's control groups say: the CPU quota, and kills for lack of memory.

Each function takes the folder in which ``/proc`` and ``/sys`` are, for tests: no machine
has every version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the smallest CPU quota on the way up, in cores; None for no quota."""
    quotas: list[float] = []
    for version, group in _groups(root, "cpu"):
        for folder in _on_the_way_up(root, version, "cpu", group):
            quota = _quota_v2(folder) if version == 2 else _quota_v1(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def oom_kills(root: Path = _ROOT) -> int | None:
    """Return how many processes of our group the kernel has killed for lack of memory.

    None where nobody counts. The count rises before the signal is sent, and whether the
    group or the machine was short of memory.
    """
    for version, group in _groups(root, "memory"):
        file = "memory.events" if version == 2 else "memory.oom_control"
        for folder in _on_the_way_up(root, version, "memory", group):
            found = _OOM_KILLS.search(_read(folder / file))
            if found:
                return int(found[1])
    return None


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the version and the path of each group that we are in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, Path(path.lstrip("/"))
        elif controller in controllers.split(","):
            yield 1, Path(path.lstrip("/"))


def _on_the_way_up(root: Path, version: int, controller: str, group: Path) -> Iterator[Path]:
    """Yield the folders of a group and of those around it.

    In a container the group itself is often at the top, whatever ``/proc`` calls it.
    """
    base = root / "sys/fs/cgroup"
    mounts = {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)}[controller]
    for mount in mounts if version == 1 else (".",):
        for parent in (group, *group.parents):
            yield base / mount / parent


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
