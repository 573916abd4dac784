"""What this machine lets us use, and where each worker goes."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictpool._cgroup import cpu_quota

# What a library reads to learn how many threads it may have.
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
# What libraries get that the user has not told how to behave in a worker.
LIBRARIES = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Of a GPU's memory, TensorFlow would take all and JAX three quarters: several workers
    # share it.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

_FORMS = '"auto", "cpu", "cpu:0-3", "gpu:0", "gpu:GPU-<uuid>" or "gpu:MIG-<uuid>"'
_CORES = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_GPU_NUMBER = re.compile(r"\d{1,5}")
_GPU_UUID = re.compile(r"(?:GPU|MIG)-[\w/-]+")


@dataclass(frozen=True)
class Device:
    """Where a worker is pinned.

    ``str(device)`` says it for people.

    Attributes:
        kind: ``"cpu"`` or ``"gpu"``.
        cores: the numbers of the CPU cores that the worker may use; none for a worker of
            `predictpool.testing.InlinePool`, which may use what its tests may, and for one that
            Ray places.
        threads: how many threads TensorFlow and other libraries get.
        gpu: the only GPU that the worker sees, as its ``CUDA_VISIBLE_DEVICES`` calls it: a
            UUID, or a number that the application's own setting has. ``""`` for none.
    """

    kind: str = "cpu"
    cores: tuple[int, ...] = ()
    threads: int = 1
    gpu: str = ""

    def __str__(self) -> str:
        cores, threads = _ranges(self.cores), f"{self.threads} thread{'s' * (self.threads != 1)}"
        if not cores:
            return f"{self.kind} ({threads})"
        if self.kind == "gpu":
            return f"gpu:{self.gpu} (cores {cores}; {threads})"
        return f"cpu:{cores} ({threads})"


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Attributes:
        cores: their numbers.
        count: how many cores' worth of time may be taken, from `worth`.
        gpus: what CUDA_VISIBLE_DEVICES calls each GPU, in the order in which users count them.
    """

    cores: tuple[int, ...]
    count: int
    gpus: tuple[str, ...] = ()


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may use.

    Never ``os.cpu_count()``, which is the machine's.
    """
    if not hasattr(os, "sched_getaffinity"):  # the launcher says that this system is none for it
        return (0,)
    return tuple(sorted(os.sched_getaffinity(0)))


def worth(cores: tuple[int, ...], root: Path = Path("/")) -> int:
    """Return how many cores' worth of time this process may take: its cgroup's quota.

    Args:
        cores: those that it may use.
        root: where ``/proc`` and ``/sys`` are; for tests.
    """
    quota = cpu_quota(root)
    return len(cores) if quota is None else min(len(cores), max(1, math.ceil(quota)))


# --- what users write --------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """One device as the user writes it; what this machine has was not looked at.

    Attributes:
        text: what was written.
        kind: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        cores: those that were named; none were for ``"cpu"``.
        gpu: its number or its UUID.
    """

    text: str
    kind: str
    cores: tuple[int, ...] = ()
    gpu: int | str | None = None


# One for all workers, or one for each.
Wishes = Wish | tuple[Wish, ...]


def parse_devices(devices: Any, workers: int | None) -> Wishes:
    """Read the pool's option.

    Raises:
        TypeError: it is neither text nor a list of texts.
        ValueError: a text is none of the forms, or a list is not as long as ``workers`` says.
    """
    if isinstance(devices, str):
        return _parse(devices)
    if not isinstance(devices, Sequence) or not all(isinstance(text, str) for text in devices):
        raise TypeError(f"devices is {devices!r}, expected {_FORMS}, or a list of them")
    wishes = tuple(map(_parse, devices))
    if not wishes:
        raise ValueError("devices is an empty list, expected one device for each worker")
    if any(wish.kind == "auto" for wish in wishes):
        raise ValueError(
            f'devices is {devices!r}, but "auto" is for the whole pool: give it alone, or name '
            "a device for each worker"
        )
    if workers is not None and workers != len(wishes):
        raise ValueError(
            f"devices lists {len(wishes)}, one for each worker, and workers is {workers}: leave "
            "workers out, or make them equal"
        )
    return wishes


def _parse(text: str) -> Wish:
    kind, colon, which = text.partition(":")
    if not colon and kind in ("auto", "cpu"):
        return Wish(text, kind)
    if kind == "cpu":
        return Wish(text, kind, tuple(_parse_cores(text, which)))
    if kind == "gpu" and _GPU_NUMBER.fullmatch(which):
        return Wish(text, kind, gpu=int(which))
    if kind == "gpu" and _GPU_UUID.fullmatch(which):
        return Wish(text, kind, gpu=which)
    raise ValueError(f"devices has {text!r}, expected {_FORMS}")


def _parse_cores(text: str, which: str) -> list[int]:
    cores: set[int] = set()
    for part in which.split(","):
        found = _CORES.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ValueError(f'devices has {text!r}, expected cores as in "cpu:0-3" or "cpu:0,2"')
        cores.update(range(first, last + 1))
    return sorted(cores)


def _ranges(cores: tuple[int, ...]) -> str:
    """Return cores as users write them: 0-3,8."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and runs[-1][-1] == core - 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def one_for_each(wishes: Wishes, workers: int | None) -> list[Wish]:
    """Return each worker's wish; of a list all, so that a worker's place is always the same.

    Args:
        workers: None for as many as were listed, or one.

    Raises:
        ValueError: fewer were listed.
    """
    if isinstance(wishes, Wish):
        return [wishes] * (workers or 1)
    if workers is not None and workers > len(wishes):
        raise ValueError(
            f"devices lists {len(wishes)}, one for each worker: there is none for {workers} workers"
        )
    return list(wishes)


# --- the plan ----------------------------------------------------------------------


def asks_for_gpus(wishes: Wishes) -> bool:
    """Whether a GPU is named."""
    return any(wish.kind == "gpu" for wish in _listed(wishes))


def looks_for_gpus(wishes: Wishes) -> bool:
    """Whether it matters which GPUs there are."""
    return any(wish.kind != "cpu" for wish in _listed(wishes))


def plan(wishes: Wishes, workers: int | None, machine: Machine) -> list[Device]:
    """Return a device for each worker.

    ``"cpu"``: one core each, in turn; a small model's calls hop between two threads, 1.6
    times faster on one core than across two, and a pool uses more cores by having more
    workers. Where a quota allows less than all cores nobody is pinned: every container of
    the host would choose the same ones.

    ``"auto"``: the GPUs in turn; without any, as ``"cpu"``.

    Workers of a GPU share what the pool's CPU workers leave of the cores: a part for each GPU.

    Args:
        workers: how many, or None: one for each core's worth, one for each GPU for
            ``"auto"``, one for each device that is named.

    Raises:
        ValueError: this machine does not have, or not allow, what was asked for.
    """
    if isinstance(wishes, Wish):
        each = _for_all(wishes, workers, machine)
    else:
        each = one_for_each(wishes, workers)
    named = {core for wish in each for core in _checked_cores(wish, machine)}
    # In turn, so that a slot has the same core however many others there are.
    turn = itertools.cycle(_without(machine.cores, named))
    pinned = machine.count == len(machine.cores)
    placed = [_on_cores(wish, turn, pinned, machine) for wish in each]
    named |= {core for device in placed if device is not None and pinned for core in device.cores}
    left = _without(machine.cores, named)
    devices = [
        _on_gpu(wish, left, machine) if device is None else device
        for wish, device in zip(each, placed, strict=True)
    ]
    return devices[:workers]


def _listed(wishes: Wishes) -> tuple[Wish, ...]:
    return (wishes,) if isinstance(wishes, Wish) else wishes


def _for_all(wish: Wish, workers: int | None, machine: Machine) -> list[Wish]:
    if wish.kind == "auto" and machine.gpus:
        count = len(machine.gpus)
        numbers = (slot % count for slot in range(workers or count))
        return [Wish(wish.text, "gpu", gpu=number) for number in numbers]
    if wish.kind == "gpu" or wish.cores:
        return one_for_each(wish, workers)
    return [Wish(wish.text, "cpu")] * (workers or machine.count)


def _checked_cores(wish: Wish, machine: Machine) -> tuple[int, ...]:
    if not set(wish.cores) <= set(machine.cores):
        raise ValueError(
            f"devices has {wish.text!r}, but this process may use the cores "
            f"{_ranges(machine.cores)} alone: its affinity or its container allows no others"
        )
    return wish.cores


def _without(cores: tuple[int, ...], named: set[int]) -> tuple[int, ...]:
    """Return the cores that are left; where none is, all: they have to be shared."""
    return tuple(core for core in cores if core not in named) or cores


def _on_cores(wish: Wish, turn: Iterator[int], pinned: bool, machine: Machine) -> Device | None:
    """Return the device of a CPU worker, or None: it is for a GPU."""
    if wish.kind == "gpu":
        return None
    if wish.cores:
        return Device(cores=wish.cores, threads=min(len(wish.cores), machine.count))
    return Device(cores=(next(turn),) if pinned else machine.cores)


def _on_gpu(wish: Wish, cores: tuple[int, ...], machine: Machine) -> Device:
    number = _number_of(wish, machine.gpus)
    count = len(machine.gpus)
    if machine.count == len(machine.cores):
        first, last = (len(cores) * place // count for place in (number, number + 1))
        own = cores[first:last] or (cores[number % len(cores)],)
        threads = len(own)
    else:
        own, threads = cores, max(1, min(len(cores), machine.count) // count)
    return Device("gpu", own, threads, machine.gpus[number])


def _number_of(wish: Wish, gpus: tuple[str, ...]) -> int:
    if isinstance(wish.gpu, int) and wish.gpu < len(gpus):
        return wish.gpu
    if wish.gpu in gpus:
        return gpus.index(str(wish.gpu))
    allowed = ", ".join(f"gpu:{number} is {gpu}" for number, gpu in enumerate(gpus))
    why = "CUDA_VISIBLE_DEVICES and the container decide about that"
    if isinstance(wish.gpu, str) and any(map(str.isdecimal, gpus)):
        why = (
            "CUDA_VISIBLE_DEVICES has numbers that CUDA counts in an order of its own: have UUIDs "
            "there, or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    raise ValueError(
        f"devices has {wish.text!r}, but this process may use "
        + (f"these alone: {allowed}" if gpus else "no GPU")
        + f"; {why}"
    )
