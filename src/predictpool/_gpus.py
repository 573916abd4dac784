"""Which GPUs this process may use, without a library that computes on them.

NVIDIA's management library answers that; nothing is opened for computing, so a fork stays
safe and no memory of a GPU is taken.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import re
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("predictpool")

# There with NVIDIA's driver alone: without it nothing has to be imported to know the answer.
_DRIVER = ("/dev/nvidiactl", "/dev/dxg")
_ENTRY = re.compile(r"\d+|(?:GPU|MIG)-.+")


@dataclass(frozen=True)
class Card:
    """A GPU as the driver tells of it.

    Attributes:
        uuid: ``"GPU-…"``.
        name: what kind it is.
        parts: the UUIDs of its parts, ``"MIG-…"``; None where it is not divided.
    """

    uuid: str
    name: str
    parts: tuple[str, ...] | None = None


def has_driver() -> bool:
    """Whether NVIDIA's driver is there; a look at what the kernel has in memory."""
    return any(map(os.path.exists, _DRIVER))


def usable_gpus(*, required: bool) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES calls each GPU, as far as that variable allows it.

    It may take a second where nothing keeps the driver awake.

    Args:
        required: whether the user has named one. Otherwise, where they cannot be listed, the
            log says why, and there are none.

    Raises:
        ModuleNotFoundError: nvidia-ml-py is not installed, and the driver is.
        OSError: the driver does not answer.
    """
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if (setting is not None and not _entries(setting)) or not has_driver():
        return ()
    try:
        cards = _cards()
    except (ModuleNotFoundError, OSError) as error:
        if required:
            raise
        logger.warning('%s; until then workers run on the CPU, which devices="cpu" asks for', error)
        return ()
    return allowed(cards, setting, os.environ.get("CUDA_DEVICE_ORDER"))


def allowed(cards: tuple[Card, ...], setting: str | None, order: str | None) -> tuple[str, ...]:
    """Return what CUDA would let a process see.

    Args:
        cards: in the order of the PCI bus.
        setting: CUDA_VISIBLE_DEVICES. As for CUDA, what follows an entry that is none counts
            for nothing, and one that comes twice means that there is no GPU at all.
        order: CUDA_DEVICE_ORDER. Without ``"PCI_BUS_ID"`` CUDA counts GPUs of several kinds in
            an order of its own: then a number of the user's stays what it is.
    """
    if setting is None:
        return tuple(gpu for card in cards for gpu in _undivided(card))
    in_order = order == "PCI_BUS_ID" or len({card.name for card in cards}) == 1
    found: list[str] = []
    for entry in _entries(setting):
        gpu = _found(entry, cards, in_order)
        if gpu is None:
            break
        found.append(gpu)
    return tuple(found) if len(set(found)) == len(found) else ()


def _undivided(card: Card) -> tuple[str, ...]:
    return (card.uuid,) if card.parts is None else card.parts


def _entries(setting: str) -> list[str]:
    entries = (entry.strip() for entry in setting.split(","))
    return list(itertools.takewhile(_ENTRY.fullmatch, entries))


def _found(entry: str, cards: tuple[Card, ...], in_order: bool) -> str | None:
    if not entry.isdecimal():
        known = {gpu for card in cards for gpu in (card.uuid, *(card.parts or ()))}
        named = [gpu for gpu in known if gpu.startswith(entry)]  # CUDA takes abbreviations
        return named[0] if len(named) == 1 else None
    number = int(entry)
    if number >= len(cards):
        return None
    # Of a divided GPU CUDA takes the first part that it likes.
    return cards[number].uuid if in_order and cards[number].parts is None else entry


# --- the driver --------------------------------------------------------------------


def _cards() -> tuple[Card, ...]:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "there is an NVIDIA driver, but its GPUs cannot be listed without nvidia-ml-py: "
            'pip install "predictpool[gpu]"',
            name=error.name,
        ) from error
    try:
        nvml.nvmlInit()
        try:
            found = (_card(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))
            return tuple(card for card in found if card is not None)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise OSError(f"NVIDIA's driver does not list its GPUs: {error}") from error


def _card(nvml: Any, number: int) -> Card | None:
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(number)
    except nvml.NVMLError_NoPermission:  # counted, but another container's
        return None
    return Card(nvml.nvmlDeviceGetUUID(card), nvml.nvmlDeviceGetName(card), _parts(nvml, card))


def _parts(nvml: Any, card: Any) -> tuple[str, ...] | None:
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(card)
    except nvml.NVMLError_NotSupported:
        return None
    if divided != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except nvml.NVMLError_NotFound:  # there may be fewer
            continue
        found.append(nvml.nvmlDeviceGetUUID(part))
    return tuple(found)
