"""Which GPUs a process may use, told by a driver that is made up."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

import pytest

from predictpool import _gpus
from predictpool._gpus import Card, allowed, usable_gpus

ALIKE = (Card("GPU-aa", "H100"), Card("GPU-ab", "H100"), Card("GPU-b", "H100"))
UNLIKE = (Card("GPU-aa", "H100"), Card("GPU-b", "T4"))
DIVIDED = (Card("GPU-a", "H100", ("MIG-1", "MIG-2")), Card("GPU-b", "H100"))


class FakeNvml(ModuleType):
    """As much of NVIDIA's management library as is asked for, under its own names."""

    # ruff: disable[N801, N802]

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    class NVMLError_NotFound(NVMLError): ...

    class NVMLError_NoPermission(NVMLError): ...

    def __init__(self, cards: tuple[Card, ...], broken: str = "") -> None:
        super().__init__("pynvml")
        self.cards, self.broken, self.opened = cards, broken, 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError(self.broken)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Card:
        if self.cards[number].uuid == "GPU-not-ours":
            raise self.NVMLError_NoPermission
        return self.cards[number]

    def nvmlDeviceGetUUID(self, handle: Card | str) -> str:
        return handle.uuid if isinstance(handle, Card) else handle

    def nvmlDeviceGetName(self, handle: Card) -> str:
        return handle.name

    def nvmlDeviceGetMigMode(self, handle: Card) -> list[int]:
        if handle.name == "T4":
            raise self.NVMLError_NotSupported
        return [int(handle.parts is not None), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Card, number: int) -> str:
        parts = handle.parts or ()
        if number % 2 or number // 2 >= len(parts):  # not each number has one
            raise self.NVMLError_NotFound
        return parts[number // 2]

    # ruff: enable[N801, N802]


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def pretend(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None) -> None:
    """Have a driver, and the library that asks it, or none."""
    monkeypatch.setattr(_gpus, "_DRIVER", ("/dev/null",))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


@pytest.mark.parametrize("cards", [ALIKE, UNLIKE])
def test_gpus_are_told_by_their_uuids(
    monkeypatch: pytest.MonkeyPatch, cards: tuple[Card, ...]
) -> None:
    pretend(monkeypatch, nvml := FakeNvml(cards))
    assert usable_gpus(required=False) == tuple(card.uuid for card in cards)
    assert nvml.opened == 0


def test_a_divided_gpu_is_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FakeNvml(DIVIDED))
    assert usable_gpus(required=False) == ("MIG-1", "MIG-2", "GPU-b")


def test_a_gpu_of_another_container_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FakeNvml((Card("GPU-not-ours", "H100"), *ALIKE)))
    assert usable_gpus(required=True) == tuple(card.uuid for card in ALIKE)


def test_the_setting_of_the_application_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FakeNvml(ALIKE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert usable_gpus(required=True) == ("GPU-b", "GPU-aa")
    pretend(monkeypatch, FakeNvml(UNLIKE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert usable_gpus(required=True) == ("1",)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert usable_gpus(required=True) == ("GPU-b",)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,2", ("GPU-aa", "GPU-b")),
        (" 2 , 1", ("GPU-b", "GPU-ab")),
        ("2,-1,0", ("GPU-b",)),  # CUDA reads no further
        ("0,3,1", ("GPU-aa",)),
        ("GPU-b,GPU-aa", ("GPU-b", "GPU-aa")),
        ("GPU-b,GPU-x,0", ("GPU-b",)),
        ("GPU-ab", ("GPU-ab",)),
        ("GPU-a", ()),  # of two
        ("0,2,0", ()),  # a GPU that comes twice makes CUDA see none
        ("GPU-b,2", ()),
    ],
)
def test_what_the_setting_lets_through(setting: str, expected: tuple[str, ...]) -> None:
    assert allowed(ALIKE, setting, None) == expected


def test_numbers_stay_what_they_are_where_only_cuda_knows_its_order() -> None:
    assert allowed(UNLIKE, "1,0", None) == ("1", "0")
    assert allowed(UNLIKE, "1,0", "FASTEST_FIRST") == ("1", "0")
    assert allowed(UNLIKE, "1,0", "PCI_BUS_ID") == ("GPU-b", "GPU-aa")


def test_parts_are_named_and_the_number_of_a_divided_gpu_stays() -> None:
    assert allowed(DIVIDED, "MIG-2,1,0", None) == ("MIG-2", "GPU-b", "0")


def test_without_a_driver_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    monkeypatch.setattr(_gpus, "_DRIVER", ("/nowhere",))
    assert usable_gpus(required=True) == ()


def test_where_the_setting_hides_all_gpus_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert usable_gpus(required=True) == ()


@pytest.mark.parametrize(
    ("nvml", "error", "message"),
    [
        (None, ModuleNotFoundError, r'pip install "predictpool\[gpu\]"'),
        (FakeNvml((), "version mismatch"), OSError, "does not list its GPUs: version mismatch"),
    ],
    ids=["no library", "no answer"],
)
def test_gpus_that_cannot_be_listed_are_an_error_or_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nvml: FakeNvml | None,
    error: type[Exception],
    message: str,
) -> None:
    pretend(monkeypatch, nvml)
    with pytest.raises(error, match=message):
        usable_gpus(required=True)
    assert not caplog.records
    assert usable_gpus(required=False) == ()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "until then workers run on the CPU" in record.message


def test_the_library_has_what_is_asked_for() -> None:
    nvml: Any = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    names = {name for name in vars(FakeNvml) if name.lower().startswith("nvml")}
    assert [name for name in names if not hasattr(importlib.reload(nvml), name)] == []
